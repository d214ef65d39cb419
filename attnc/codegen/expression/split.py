"""An expression too long for a line, in lines: a name for each part, and what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

_JOINED = {
    sympy.Add: "{} + {}",
    sympy.Mul: "{} * {}",
    sympy.Max: "tl.maximum({}, {})",
    sympy.Min: "tl.minimum({}, {})",
}


@dataclass(slots=True)
class Names:
    """Names of parts, counted."""

    stem: str
    count: int = 0

    def next(self) -> str:
        self.count += 1
        return f"{self.stem}_{self.count}"


def operands(expr: sympy.Basic) -> list[sympy.Basic]:
    """The operands that may be computed on a line of their own."""
    if isinstance(expr, sympy.Piecewise):
        return [value for value, _ in expr.args if not value.is_number]
    return [arg for arg in expr.args if not arg.is_number]


def joined_lines(target: str, expr: sympy.Basic, parts: Sequence[str]) -> list[str]:
    """`target` = a sum, a product, a maximum or a minimum of parts, one a line."""
    joined = next((text for kind, text in _JOINED.items() if isinstance(expr, kind)), None)
    if joined is None:
        raise AssertionError(f"no split of {expr}")
    first, *rest = parts
    return [f"{target} = {first}", *(f"{target} = {joined.format(target, p)}" for p in rest)]


def power_lines(target: str, base: str, exponent: int) -> list[str]:
    """`target` = a whole power of a name, by squares of squares."""
    lines = [f"{target} = {base}"]
    for bit in f"{abs(exponent):b}"[1:]:
        last = f" * {base}" if bit == "1" else ""
        lines.append(f"{target} = {target} * {target}{last}")
    return lines if exponent > 0 else [*lines, f"{target} = 1.0 / {target}"]
