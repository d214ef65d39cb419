"""Half-planes in i and j: what one comparison of a mask says, over whole positions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd, lcm

from attnc.dsl.expr import Binary, Expr, Name, Negate, Number, Span
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded, MaskNotAffine

MAX_COEFFICIENT = 1024
MAX_CONSTANT = 2**30


@dataclass(frozen=True, slots=True, order=True)
class HalfPlane:
    """The pairs with i * I + j * J + c >= 0, I the query's position and J the key's."""

    i: int
    j: int
    c: int

    def holds(self, row: int, column: int) -> bool:
        """Whether the pair (row, column) lies in it."""
        return self.i * row + self.j * column + self.c >= 0

    def __str__(self) -> str:
        terms: list[str] = []
        for coefficient, name in ((self.i, "i"), (self.j, "j")):
            if coefficient:
                size = "" if abs(coefficient) == 1 else f"{abs(coefficient)}*"
                sign = "-" if coefficient < 0 else "+" if terms else ""
                terms.append(f"{sign} {size}{name}".strip() if terms else f"{sign}{size}{name}")
        return f"{' '.join(terms) or '0'} >= {-self.c}"


Clause = tuple[HalfPlane, ...]


class MaskProblem(Exception):
    """What is wrong with a mask and where; the caller knows the text and renders it."""

    def __init__(
        self,
        error: type[MaskNotAffine] | type[LimitExceeded],
        message: str,
        span: Span | None,
        note: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.error, self.message, self.span = error, message, span
        self.note, self.hint = note, hint


def plane_of(op: str, left: Expr, right: Expr) -> HalfPlane:
    """`left op right` over integer positions, as e >= 0 with whole coefficients."""
    if op in {">", ">="}:
        left, right, op = right, left, {">": "<", ">=": "<="}[op]
    first, second = _affine(left), _affine(right)
    i, j, c = (b - a for a, b in zip(first, second, strict=True))
    scale = lcm(i.denominator, j.denominator)
    i, j, c = i * scale, j * scale, c * scale
    # strict over the integers: e > 0 with whole i, j means e >= the next whole step
    constant = floor(c) if op == "<=" else -floor(-c) - 1
    whole_i, whole_j = int(i), int(j)
    step = gcd(whole_i, whole_j)
    if step > 1:
        whole_i, whole_j, constant = whole_i // step, whole_j // step, constant // step
    if max(abs(whole_i), abs(whole_j)) > MAX_COEFFICIENT or abs(constant) > MAX_CONSTANT:
        raise MaskProblem(
            LimitExceeded,
            f"a mask has coefficients up to {MAX_COEFFICIENT:,} and constants up to "
            f"{MAX_CONSTANT:,}",
            None,
            "kernels compare positions as 32-bit integers",
        )
    return HalfPlane(whole_i, whole_j, constant)


def is_bound(arg: Expr) -> bool:
    """Whether an argument is a whole number of at least 0."""
    try:
        i, j, c = _affine(arg)
    except MaskProblem:
        return False
    return not i and not j and c.denominator == 1 and c >= 0


_Affine = tuple[Fraction, Fraction, Fraction]


def _affine(expr: Expr) -> _Affine:
    """(coefficient of i, of j, constant)."""
    zero = Fraction(0)
    match expr:
        case Number(value=value):
            return zero, zero, value
        case Name(id="i"):
            return Fraction(1), zero, zero
        case Name(id="j"):
            return zero, Fraction(1), zero
        case Negate(operand=operand):
            i, j, c = _affine(operand)
            return -i, -j, -c
        case Binary(op="+" | "-", left=left, right=right):
            sign = 1 if expr.op == "+" else -1
            first, second = _affine(left), _affine(right)
            i, j, c = (a + sign * b for a, b in zip(first, second, strict=True))
            return i, j, c
        case Binary(op="*", left=left, right=right):
            first, second = _affine(left), _affine(right)
            if not any(first[:2]):
                i, j, c = (first[2] * part for part in second)
                return i, j, c
            if not any(second[:2]):
                i, j, c = (second[2] * part for part in first)
                return i, j, c
        case Binary(op="/", left=left, right=right):
            first, second = _affine(left), _affine(right)
            if not any(second[:2]) and second[2]:
                i, j, c = (part / second[2] for part in first)
                return i, j, c
    raise MaskProblem(
        MaskNotAffine,
        f"{to_text(expr)!r} is not affine in i and j",
        getattr(expr, "span", None),
        "a mask compares sums of i, j and numbers, so that its tiles have closed-form bounds",
        "write a term that depends on data into the score",
    )
