"""The weight of the state family as text: a polynomial of the score, by Horner's rule."""

from __future__ import annotations

from fractions import Fraction

from attnc.codegen.expression.printer import number


def horner(
    target: str, score: str, coefficients: tuple[Fraction, ...], scale: float, *, direct: bool
) -> tuple[str, ...]:
    """`target` = sum of c_m * (scale * score)**m.

    A linear weight is left unscaled (`direct`): its factor is one product a row at the end.
    """
    if direct:
        return (f"{target} = {score}",)
    factors = [float(c) * scale**m for m, c in enumerate(coefficients)]
    lines: list[str] = []
    text = number(factors[-1])
    for factor in reversed(factors[:-1]):
        product = f"{text} * {score}"
        lines.append(f"{target} = {product}" + (f" {_signed(factor)}" if factor else ""))
        text = target
    return tuple(lines)


def _signed(value: float) -> str:
    return f"+ {number(value)}" if value >= 0 else f"- {number(-value)}"
