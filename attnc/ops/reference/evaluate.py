"""Expressions of a variant evaluated in torch, for the reference alone.

Nothing here knows sympy or the emitted text: it walks the parsed tree, so that the reference stays
a second opinion on what the compiler derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Number, Ref

# what is computed from these is rounded in `pt`: indices and parameters alone keep the full width
DATA_NAMES = frozenset({"s", "x", "v"})


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names and references of an expression stand for in one block.

    Tensors broadcast against each other in [B, HQ, rows, TK]. With `rounding`, every operation on
    the score `s`, the channel `x` or `v` is rounded to that dtype, as eager torch would round it.
    Where not `seen`, nothing is differentiated: log(i - j) has no number there, nor a derivative.
    """

    names: Mapping[str, Tensor]
    load: Callable[[Ref], Tensor]
    dtype: torch.dtype
    device: torch.device
    rounding: torch.dtype | None = None
    seen: Tensor | None = None

    def number(self, value: float) -> Tensor:
        """A 0-d tensor of the scope's dtype."""
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def round(self, value: Tensor) -> Tensor:
        """The value as the working dtype holds it, in the scope's dtype."""
        return round_to(value, self.rounding)


def round_to(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round to a dtype's grid and come back; None rounds nothing."""
    return value if dtype is None or dtype == value.dtype else value.to(dtype).to(value.dtype)


def evaluate(expr: Expr, scope: Scope) -> Tensor:
    """The number an expression stands for, everywhere in the block; a condition counts 1 or 0."""
    return _Walk(scope).value(expr)[0]


def evaluate_mask(expr: Expr, scope: Scope) -> Tensor:
    """Which pairs of the block are visible, as booleans that broadcast over it."""
    return _Walk(scope).condition(expr)


@dataclass(frozen=True, slots=True)
class _Walk:
    scope: Scope

    def value(self, expr: Expr) -> tuple[Tensor, bool]:
        """The value, and whether it was computed from data and so gets rounded."""
        scope = self.scope
        match expr:
            case Number(value=value):
                return scope.number(float(value)), False
            case Name(id=name):
                named = scope.names[name].to(scope.dtype)
                return _seen_alone(named, scope.seen), name in DATA_NAMES
            case Ref():
                return _seen_alone(scope.load(expr).to(scope.dtype), scope.seen), False
            case Negate(operand=operand):
                result, data = self.value(operand)
                return -result, data
            case Binary(op=op, left=left, right=right):
                return self._apply(lambda args: _BINARY[op](args[0], args[1]), (left, right))
            case Call(function="where", args=(condition, yes, no)):
                chosen = self.condition(condition)
                # the branch that is not taken gives no gradient, whatever its number is
                pairs = [self._within(chosen).value(yes), self._within(~chosen).value(no)]
                return self._applied(lambda args: torch.where(chosen, args[0], args[1]), pairs)
            case Call(function=function, args=args):
                return self._apply(_FUNCTIONS[function], args)
            case Compare() | Logic():
                return self.condition(expr).to(scope.dtype), False
        raise AssertionError(f"no value for {expr!r}")

    def _apply(
        self, function: Callable[[list[Tensor]], Tensor], operands: tuple[Expr, ...]
    ) -> tuple[Tensor, bool]:
        return self._applied(function, [self.value(operand) for operand in operands])

    def _within(self, chosen: Tensor) -> _Walk:
        seen = self.scope.seen
        return _Walk(replace(self.scope, seen=chosen if seen is None else seen & chosen))

    def _applied(
        self, function: Callable[[list[Tensor]], Tensor], pairs: list[tuple[Tensor, bool]]
    ) -> tuple[Tensor, bool]:
        data = any(is_data for _, is_data in pairs)
        result = function([value for value, _ in pairs])
        return (self.scope.round(result) if data else result), data

    def condition(self, expr: Expr) -> Tensor:
        names = self.scope.names
        match expr:
            case Name(id="full"):
                return torch.ones((), dtype=torch.bool, device=self.scope.device)
            case Name(id="causal"):
                return names["j"] <= names["i"]
            case Call(function="documents", args=(Ref(name=name),)):
                row, column = (self.scope.load(Ref(name, ("b", at))) for at in ("i", "j"))
                # a row before token 0 is of no document
                return (row == column) & (names["i"] >= 0)
            case Call(function="blocks", args=(Ref() as table, _)):
                return self.scope.load(table) != 0
            case Call(function="window", args=(left,)):
                return names["j"] >= names["i"] - self.value(left)[0]
            case Call(function="window", args=(left, right)):
                within = names["j"] >= names["i"] - self.value(left)[0]
                return within & (names["j"] <= names["i"] + self.value(right)[0])
            case Call(function="prefix", args=(count,)):
                return names["j"] < self.value(count)[0]
            case Compare(op=op, left=left, right=right):
                return self._compare(op, left, right)
            case Logic(op="~", operands=(operand,)):
                return ~self.condition(operand)
            case Logic(op=op, operands=(first, *others)):
                result = self.condition(first)
                for other in others:
                    value = self.condition(other)
                    result = result & value if op == "&" else result | value
                return result
            case _:
                return self.value(expr)[0] != 0

    def _compare(self, op: str, left: Expr, right: Expr) -> Tensor:
        difference = _affine(Binary("-", left, right))
        if difference is None:
            return _COMPARE[op](self.value(left)[0], self.value(right)[0])
        # whole numbers: 0.1 * i >= 3 must hold at i = 30, which no binary fraction grants
        whole = math.lcm(*(part.denominator for part in difference))
        over_i, over_j, constant = (int(part * whole) for part in difference)
        zero = torch.zeros((), dtype=torch.int64, device=self.scope.device)
        total = zero + constant
        for name, factor in (("i", over_i), ("j", over_j)):
            if factor:
                total = total + self.scope.names[name].to(torch.int64) * factor
        return _COMPARE[op](total, zero)


class _SeenAlone(torch.autograd.Function):
    """A tensor as it is; elements that are not seen hand back 0, where autograd has 0 * inf."""

    @staticmethod
    def forward(context: Any, value: Tensor, seen: Tensor) -> Tensor:
        context.save_for_backward(seen)
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (seen,) = context.saved_tensors
        return torch.where(seen, gradients[0], 0), None


def _seen_alone(value: Tensor, seen: Tensor | None) -> Tensor:
    if seen is None or not value.requires_grad:
        return value
    whole, _ = torch.broadcast_tensors(value, seen)  # type: ignore[no-untyped-call]
    kept: Tensor = _SeenAlone.apply(whole, seen)  # type: ignore[no-untyped-call]
    return kept


def _affine(expr: Expr) -> tuple[Fraction, Fraction, Fraction] | None:
    """(a, b, c) of a*i + b*j + c, or None for an expression of another kind."""
    match expr:
        case Number(value=value):
            return Fraction(0), Fraction(0), Fraction(value)
        case Name(id="i"):
            return Fraction(1), Fraction(0), Fraction(0)
        case Name(id="j"):
            return Fraction(0), Fraction(1), Fraction(0)
        case Negate(operand=operand):
            return _affine(Binary("-", Number(Fraction(0)), operand))
        case Binary(op=op, left=left, right=right):
            first, second = _affine(left), _affine(right)
            if first is None or second is None:
                return None
            return _combine(op, first, second)
    return None


def _combine(
    op: str,
    first: tuple[Fraction, Fraction, Fraction],
    second: tuple[Fraction, Fraction, Fraction],
) -> tuple[Fraction, Fraction, Fraction] | None:
    if op in {"+", "-"}:
        sign = 1 if op == "+" else -1
        over_i, over_j, constant = (a + sign * b for a, b in zip(first, second, strict=True))
        return over_i, over_j, constant
    if op == "*" and not any(first[:2]):
        first, second = second, first
    factor = second[2]
    if op not in {"*", "/"} or any(second[:2]) or (op == "/" and factor == 0):
        return None
    over_i, over_j, constant = (part * factor if op == "*" else part / factor for part in first)
    return over_i, over_j, constant


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "**": torch.pow,
}
_COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "!=": torch.ne,
}


def _softcap(args: list[Tensor]) -> Tensor:
    value, cap = args
    return cap * torch.tanh(value / cap)


def _elu(args: list[Tensor]) -> Tensor:
    # the branch not taken is kept finite, or its gradient would be inf * 0
    return torch.where(args[0] > 0, args[0], torch.expm1(args[0].clamp(max=0)))


def _softplus(args: list[Tensor]) -> Tensor:
    # torch's own softplus is the identity from 20 on, which is no fp64 answer
    return torch.logaddexp(args[0], torch.zeros_like(args[0]))


def _chosen(function: Callable[..., Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """amin or amax over the arguments: those that tie share the gradient alike."""
    return lambda args: function(torch.stack(torch.broadcast_tensors(*args)), dim=0)  # type: ignore[no-untyped-call]


_FUNCTIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "exp": lambda args: torch.exp(args[0]),
    "log": lambda args: torch.log(args[0]),
    "log1p": lambda args: torch.log1p(args[0]),
    "sqrt": lambda args: torch.sqrt(args[0]),
    "tanh": lambda args: torch.tanh(args[0]),
    "sigmoid": lambda args: torch.sigmoid(args[0]),
    "abs": lambda args: torch.abs(args[0]),
    "min": _chosen(torch.amin),
    "max": _chosen(torch.amax),
    "softcap": _softcap,
    "relu": lambda args: torch.relu(args[0]),
    "elu": _elu,
    "silu": lambda args: args[0] * torch.sigmoid(args[0]),
    "softplus": _softplus,
}
