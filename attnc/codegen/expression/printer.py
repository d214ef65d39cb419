"""sympy expressions as Triton text, in lines that a formatter leaves alone.

The printer knows nothing of kernels: a binding says which text stands for which symbol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from attnc.codegen.expression.split import Names, joined_lines, operands, power_lines
from attnc.codegen.expression.symbolic import log1p, relu, sigmoid, softplus

LINE_WIDTH = 92
_SUM, _PRODUCT, _UNARY, _ATOM = 1, 2, 3, 4
_RELATIONS = {
    sympy.StrictLessThan: "<",
    sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">",
    sympy.GreaterThan: ">=",
    sympy.Equality: "==",
    sympy.Unequality: "!=",
}


def number(value: float) -> str:
    """A float literal that reads back as the same float."""
    text = repr(float(value))
    if text in {"inf", "-inf"}:
        return f'float("{text}")'
    return text


@dataclass(slots=True)
class Printer:
    """Prints expressions; remembers which helper functions the text calls.

    `fast_tanh` takes tanh from the special-function unit, to 11 bits (PTX ISA, tanh.approx.f32).
    """

    bindings: Mapping[str, str]
    helpers: set[str] = field(default_factory=set)
    fast_tanh: bool = False

    def bound(self, bindings: Mapping[str, str]) -> Printer:
        """The same printer with other texts for symbols."""
        return Printer(bindings, self.helpers, self.fast_tanh)

    def statements(self, target: str, expr: sympy.Expr) -> tuple[str, ...]:
        """`target = expr` in as many lines as the width asks for."""
        lines: list[str] = []
        self._assign(target, expr, lines, room=LINE_WIDTH - len(target) - 3, names=Names(target))
        return tuple(lines)

    def tile(self, target: str, expr: sympy.Expr, element: str) -> tuple[str, ...]:
        """The same where `target` has the shape of the tile whose elements `element` stands for.

        An expression may have lost them: `v**0` is 1 at every element.
        """
        lines = self.statements(target, expr)
        if any(symbol.name == element for symbol in expr.free_symbols):
            return lines
        return (*lines, f"{target} = {target} + tl.zeros_like({self.bindings[element]})")

    def text(self, expr: sympy.Basic) -> str:
        """The expression on one line, however long."""
        return self._print(expr)[0]

    def _assign(
        self, target: str, expr: sympy.Basic, lines: list[str], *, room: int, names: Names
    ) -> None:
        text = self.text(expr)
        if len(text) <= room:
            lines.append(f"{target} = {text}")
            return
        if isinstance(expr, sympy.Piecewise):
            self._assign_choice(target, expr, lines, names)
            return
        # the longest parts get a name of their own until the rest fits a line
        parts: dict[sympy.Basic, str] = {}
        for arg in sorted(operands(expr), key=lambda part: -len(self.text(part))):
            name = names.next()
            self._assign(name, arg, lines, room=LINE_WIDTH - len(name) - 3, names=names)
            parts[arg] = name
            bound = self.bound({**self.bindings, **{n: n for n in parts.values()}})
            short = expr.xreplace({part: sympy.Symbol(n, real=True) for part, n in parts.items()})
            text = bound.text(short)
            if len(text) <= room:
                lines.append(f"{target} = {text}")
                return
        numbers = [self._wrap(arg, _ATOM) for arg in expr.args if arg.is_number]
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer:
            lines.extend(power_lines(target, parts[expr.base], int(expr.exp)))
            return
        lines.extend(joined_lines(target, expr, [*parts.values(), *numbers]))

    def _assign_choice(
        self, target: str, expr: sympy.Piecewise, lines: list[str], names: Names
    ) -> None:
        """A choice too long for a line: one branch after the other, the default first."""
        *cases, (default, _) = expr.args
        chosen = names.next()
        self._assign(chosen, default, lines, room=LINE_WIDTH - len(chosen) - 3, names=names)
        for value, condition in reversed(cases):
            yes = names.next()
            self._assign(yes, value, lines, room=LINE_WIDTH - len(yes) - 3, names=names)
            truth = self._assign_truth(condition, lines, names)
            lines.append(f"{chosen} = tl.where({truth} != 0.0, {yes}, {chosen})")
        lines.append(f"{target} = {chosen}")

    def _assign_truth(self, condition: sympy.Basic, lines: list[str], names: Names) -> str:
        """A condition as a number, 1 or 0, under a name: products and maxima join such numbers."""
        name = names.next()
        match condition:
            case sympy.And() | sympy.Or():
                joined = "tl.minimum" if isinstance(condition, sympy.And) else "tl.maximum"
                args = sorted(condition.args, key=lambda arg: arg.sort_key())
                truths = [self._assign_truth(arg, lines, names) for arg in args]
                lines.append(f"{name} = {truths[0]}")
                lines.extend(f"{name} = {joined}({name}, {truth})" for truth in truths[1:])
                return name
            case sympy.Not():
                inner = self._assign_truth(condition.args[0], lines, names)
                lines.append(f"{name} = 1.0 - {inner}")
                return name
            case sympy.ITE():
                case, then, otherwise = (
                    self._assign_truth(arg, lines, names) for arg in condition.args
                )
                lines.append(f"{name} = tl.where({case} != 0.0, {then}, {otherwise})")
                return name
        sides = [names.next(), names.next()]
        for side, value in zip(sides, condition.args, strict=True):
            self._assign(side, value, lines, room=LINE_WIDTH - len(side) - 3, names=names)
        relation = _RELATIONS[type(condition)]
        lines.append(f"{name} = tl.where({sides[0]} {relation} {sides[1]}, 1.0, 0.0)")
        return name

    def _print(self, expr: sympy.Basic) -> tuple[str, int]:
        match expr:
            case sympy.Symbol():
                return self.bindings[expr.name], _ATOM
            case sympy.Rational() | sympy.Float() | sympy.NumberSymbol():
                return number(float(expr)), _ATOM if expr >= 0 else _UNARY
            case sympy.I | sympy.nan | sympy.zoo:  # sqrt(-s**2) has no value but at 0
                return 'float("nan")', _ATOM
            case sympy.Add():
                return self._sum(expr), _SUM
            case sympy.Mul():
                return self._product(expr)
            case sympy.Pow():
                return self._power(expr)
            case sympy.Piecewise():
                return self._where(expr), _ATOM
            case sympy.Max() | sympy.Min():
                name = "tl.maximum" if isinstance(expr, sympy.Max) else "tl.minimum"
                return self._nested(name, expr.args), _ATOM
        return self._call(expr), _ATOM

    def _call(self, expr: sympy.Basic) -> str:
        argument = self.text(expr.args[0]) if expr.args else ""
        match expr:
            case sympy.exp() | sympy.log() | sympy.Abs():
                return f"tl.{type(expr).__name__.lower()}({argument})"
            case sympy.sign():
                return f"tl.where({argument} > 0.0, 1.0, tl.where({argument} < 0.0, -1.0, 0.0))"
            case relu():
                return f"tl.maximum({argument}, 0.0)"
            case sympy.Heaviside():
                return f"tl.where({argument} > 0.0, 1.0, 0.0)"
            case sympy.tanh() | sigmoid() | softplus() | log1p():
                name = type(expr).__name__
                if self.fast_tanh and isinstance(expr, sympy.tanh):
                    name = "fast_tanh"
                self.helpers.add(name)
                return f"{name}({argument})"
        raise AssertionError(f"no Triton text for {type(expr).__name__}: {expr}")

    def _wrap(self, expr: sympy.Basic, level: int) -> str:
        text, own = self._print(expr)
        return f"({text})" if own < level else text

    def _sum(self, expr: sympy.Add) -> str:
        terms = sorted(expr.args, key=lambda term: (_is_negative(term), term.sort_key()))
        text = self._wrap(terms[0], _SUM)
        for term in terms[1:]:
            if _is_negative(term):
                text += f" - {self._wrap(-term, _PRODUCT)}"
            else:
                text += f" + {self._wrap(term, _SUM)}"
        return text

    def _product(self, expr: sympy.Mul) -> tuple[str, int]:
        coefficient, rest = expr.as_coeff_Mul()
        if coefficient < 0:
            inner = -expr
            level = _PRODUCT if isinstance(inner, sympy.Mul | sympy.Pow) else _UNARY
            return f"-{self._wrap(inner, level)}", _UNARY
        above: list[str] = []
        below: list[str] = []
        if coefficient != 1:
            above.append(number(float(coefficient)))
        for factor in sorted(sympy.Mul.make_args(rest), key=lambda f: f.sort_key()):
            if isinstance(factor, sympy.Pow) and _is_negative(factor.exp):
                below.append(self._wrap(1 / factor, _ATOM))
            else:
                above.append(self._wrap(factor, _PRODUCT))
        text = " * ".join(above) if above else "1.0"
        for factor in below:
            text += f" / {factor}"
        return text, _PRODUCT

    def _power(self, expr: sympy.Pow) -> tuple[str, int]:
        base, exponent = expr.args
        if exponent.is_Integer and exponent > 0:
            # squares of squares: no call, and the same rounding everywhere
            factor = self._wrap(base, _UNARY)
            return " * ".join([factor] * int(exponent)), _PRODUCT
        if _is_negative(exponent):
            return f"1.0 / {self._wrap(1 / expr, _ATOM)}", _PRODUCT
        if exponent == sympy.Rational(1, 2):
            return f"tl.sqrt({self.text(base)})", _ATOM
        if base.is_number and base > 0:
            factor = exponent * sympy.Float(float(sympy.log(base, 2))) if base != 2 else exponent
            return f"tl.exp2({self.text(factor)})", _ATOM
        if not exponent.is_number:
            # 0**0 is 1, and (-2)**h has a sign, which no logarithm knows
            self.helpers.add("power")
            return f"power({self.text(base)}, {self.text(exponent)})", _ATOM
        return f"tl.exp2({self._wrap(exponent, _PRODUCT)} * tl.log2({self.text(base)}))", _ATOM

    def _where(self, expr: sympy.Piecewise) -> str:
        *cases, (default, _) = expr.args
        text = self.text(default)
        for value, condition in reversed(cases):
            text = self._choose(condition, self.text(value), text)
        return text

    def _choose(self, condition: sympy.Basic, yes: str, no: str) -> str:
        """`yes` where the condition holds; & | ~ become nested choices.

        A scalar truth value and a vector of them do not join in Triton's interpreter.
        """
        match condition:
            case sympy.And() | sympy.Or():
                for arg in sorted(condition.args, key=lambda arg: arg.sort_key(), reverse=True):
                    if isinstance(condition, sympy.And):
                        yes = self._choose(arg, yes, no)
                    else:
                        no = self._choose(arg, yes, no)
                return yes if isinstance(condition, sympy.And) else no
            case sympy.Not():
                return self._choose(condition.args[0], no, yes)
            case sympy.ITE():
                # a comparison of a choice: sympy makes a choice of comparisons of it
                case, then, otherwise = condition.args
                then, otherwise = self._choose(then, yes, no), self._choose(otherwise, yes, no)
                return self._choose(case, then, otherwise)
        return f"tl.where({self.condition(condition)}, {yes}, {no})"

    def condition(self, expr: sympy.Basic) -> str:
        """A comparison as text."""
        if expr in {sympy.true, sympy.false}:
            raise AssertionError(f"a constant condition {expr} should have been folded")
        left, right = expr.args
        relation = _RELATIONS[type(expr)]
        return f"{self._wrap(left, _SUM)} {relation} {self._wrap(right, _SUM)}"

    def _nested(self, name: str, args: tuple[sympy.Basic, ...]) -> str:
        ordered = sorted(args, key=lambda arg: (bool(arg.is_number), arg.sort_key()))
        text = self.text(ordered[0])
        for arg in ordered[1:]:
            text = f"{name}({text}, {self.text(arg)})"
        return text


def _is_negative(expr: sympy.Basic) -> bool:
    return bool(expr.as_coeff_Mul()[0] < 0)
