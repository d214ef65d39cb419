"""Expressions as sympy sees them: the algebra, the derivatives and the printer all work on these.

sympy never reads user text: a tree that the parser's whitelist let through is rebuilt node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import sympy

from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Number, Ref, walk
from attnc.dsl.text import to_text
from attnc.errors import SyntaxRefused


class _Real(sympy.Function):  # type: ignore[misc]
    """A function kept whole: real where its argument is, and spelled out of a number.

    Of a function that may be complex sympy takes `re`, and of a number it asks for digits.
    """

    @classmethod
    def eval(cls, value: sympy.Expr) -> sympy.Expr | None:
        return cls.spelled(value) if value.is_number else None

    @staticmethod
    def spelled(value: sympy.Expr) -> sympy.Expr:
        """The same in functions that sympy knows."""
        raise NotImplementedError

    def _eval_is_real(self) -> bool | None:
        return self.args[0].is_real  # type: ignore[no-any-return]


class sigmoid(_Real):
    """1 / (1 + exp(-x)), kept whole so that the printer can choose a stable text."""

    @staticmethod
    def spelled(value: sympy.Expr) -> sympy.Expr:
        return 1 / (1 + sympy.exp(-value))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        value = sigmoid(self.args[0])
        return value * (1 - value)


class softplus(_Real):
    """log(1 + exp(x)), kept whole so that a large x does not overflow."""

    @staticmethod
    def spelled(value: sympy.Expr) -> sympy.Expr:
        return sympy.log(1 + sympy.exp(value))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sigmoid(self.args[0])


class log1p(_Real):
    """log(1 + x), kept whole so that a small x keeps its digits."""

    @staticmethod
    def spelled(value: sympy.Expr) -> sympy.Expr:
        return sympy.log(1 + value)

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return 1 / (1 + self.args[0])


class relu(_Real):
    """max(x, 0), kept whole: at 0 its derivative is 0, where that of a maximum is shared."""

    @staticmethod
    def spelled(value: sympy.Expr) -> sympy.Expr:
        return sympy.Max(value, 0)

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.Heaviside(self.args[0], 0)


def symbol(name: str) -> sympy.Symbol:
    """The real symbol of an index, a score or a scalar parameter."""
    return sympy.Symbol(name, real=True)


def ref_symbol(ref: Ref) -> sympy.Symbol:
    """The real symbol of one indexed tensor, `slope[h]`."""
    return symbol(f"{ref.name}[{','.join(ref.index)}]")


def _log(value: sympy.Expr) -> sympy.Expr:
    """log(value); of a sigmoid, which vanishes in fp32 from -104 on, as its own logarithm."""
    return -softplus(-value.args[0]) if isinstance(value, sigmoid) else sympy.log(value)


def _abs(value: sympy.Expr) -> sympy.Expr:
    """|value|; of what may have no value, log(s), sympy's own would take `re`."""
    return sympy.Abs(value) if value.is_real else sympy.Max(value, -value)


def _softcap(value: sympy.Expr, cap: sympy.Expr) -> sympy.Expr:
    return cap * sympy.tanh(value / cap)


def _elu(value: sympy.Expr) -> sympy.Expr:
    return sympy.Piecewise((value, value > 0), (sympy.exp(value) - 1, True))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": sympy.exp,
    "log": _log,
    "log1p": log1p,
    "sqrt": sympy.sqrt,
    "tanh": sympy.tanh,
    "sigmoid": sigmoid,
    "abs": _abs,
    "min": sympy.Min,
    "max": sympy.Max,
    "softcap": _softcap,
    "relu": relu,
    "elu": _elu,
    "silu": lambda value: value * sigmoid(value),
    "softplus": softplus,
}
_COMPARISONS = {
    "<": sympy.Lt,
    "<=": sympy.Le,
    ">": sympy.Gt,
    ">=": sympy.Ge,
    "==": sympy.Eq,
    "!=": sympy.Ne,
}
_NO_NUMBER = (sympy.zoo, sympy.nan, sympy.oo, -sympy.oo, sympy.I)
_LOGIC = {"&": sympy.And, "|": sympy.Or, "~": sympy.Not}


def to_sympy(expr: Expr) -> sympy.Expr:
    """Rebuild a checked expression in sympy; a comparison used as a number counts 1 or 0.

    Raises:
        SyntaxRefused: a part that is no real number for any tensors, such as 1/(h - h).
    """
    found = _rebuilt(expr)
    if found.has(*_NO_NUMBER):
        part = next(part for part in reversed(list(walk(expr))) if _rebuilt(part).has(*_NO_NUMBER))
        raise SyntaxRefused(
            f"{to_text(part)} has no value",
            notes=("whatever the tensors are, it divides by 0 or is no real number",),
        )
    return found


def _rebuilt(expr: Expr) -> sympy.Expr:
    match expr:
        case Number(value=value):
            return sympy.Rational(value.numerator, value.denominator)
        case Name(id=name):
            return symbol(name)
        case Ref():
            return ref_symbol(expr)
        case Negate(operand=operand):
            return -_rebuilt(operand)
        case Binary(op=op, left=left, right=right):
            return _binary(op, _rebuilt(left), _rebuilt(right))
        case Call(function="where", args=(condition, yes, no)):
            return sympy.Piecewise(
                (_rebuilt(yes), to_condition(condition)), (_rebuilt(no), sympy.true)
            )
        case Call(function=function, args=args):
            return _FUNCTIONS[function](*(_rebuilt(arg) for arg in args))
        case Compare() | Logic():
            return sympy.Piecewise((1, to_condition(expr)), (0, sympy.true))
    raise AssertionError(f"no sympy form for {expr!r}")


@cache
def is_polynomial_in(expr: Expr, function: type[sympy.Function]) -> bool:
    """Whether an expression is a polynomial in each value of a function: no kink, no pole in it."""
    whole = to_sympy(expr)
    values = {value: sympy.Dummy() for value in whole.atoms(function)}
    return bool(whole.xreplace(values).is_polynomial(*values.values()))


def to_condition(expr: Expr) -> sympy.Basic:
    """Rebuild a condition; a number used as one is true where it is not zero."""
    match expr:
        case Compare(op=op, left=left, right=right):
            return _COMPARISONS[op](to_sympy(left), to_sympy(right))
        case Logic(op=op, operands=operands):
            return _LOGIC[op](*(to_condition(operand) for operand in operands))
        case _:
            return sympy.Ne(to_sympy(expr), 0)


def _binary(op: str, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    match op:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "**":
            return left**right
    raise AssertionError(f"unknown operator {op!r}")


def refs_of(expr: Expr | None) -> tuple[Ref, ...]:
    """Every indexed tensor of an expression, once each, in order of appearance."""
    found: dict[Ref, None] = {}

    def visit(node: Expr) -> None:
        match node:
            case Ref():
                found.setdefault(node)
            case Negate(operand=operand):
                visit(operand)
            case Binary(left=left, right=right) | Compare(left=left, right=right):
                visit(left)
                visit(right)
            case Call(args=args):
                for arg in args:
                    visit(arg)
            case Logic(operands=operands):
                for operand in operands:
                    visit(operand)

    if expr is not None:
        visit(expr)
    return tuple(found)
