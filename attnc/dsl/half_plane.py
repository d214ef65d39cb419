"""Half-planes in i and j: what one comparison of a mask says, over whole positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd, lcm
from types import MappingProxyType

from attnc.dsl.expr import Binary, Call, Expr, Name, Negate, Number, Ref, Span
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded, MaskNotAffine

MAX_COEFFICIENT = 1024
MAX_CONSTANT = 2**30
NO_BOUNDS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class HalfPlane:
    """The pairs with i * I + j * J + c >= 0, I the query's position and J the key's.

    `bound` is a declared tensor that adds to c, by name and index letters, `sign` times it.
    """

    i: int
    j: int
    c: int
    bound: tuple[str, ...] = ()
    sign: int = 0

    def holds(self, row: int, column: int, bounds: Mapping[str, int] = NO_BOUNDS) -> bool:
        """Whether the pair (row, column) lies in it, `bounds` the values by name."""
        value = self.i * row + self.j * column + self.c
        return value + (self.sign * bounds[self.bound[0]] if self.bound else 0) >= 0

    @property
    def complement(self) -> HalfPlane:
        """What it leaves out: not (e >= 0) over the integers is -e - 1 >= 0."""
        return HalfPlane(-self.i, -self.j, -self.c - 1, self.bound, -self.sign)

    @property
    def mirrored(self) -> HalfPlane:
        """The same with queries and keys in each other's place."""
        return HalfPlane(self.j, self.i, self.c, self.bound, self.sign)

    def __str__(self) -> str:
        terms: list[str] = []
        for coefficient, name in ((self.i, "i"), (self.j, "j")):
            if coefficient:
                size = "" if abs(coefficient) == 1 else f"{abs(coefficient)}*"
                sign = "-" if coefficient < 0 else "+" if terms else ""
                terms.append(f"{sign} {size}{name}".strip() if terms else f"{sign}{size}{name}")
        if self.bound:
            name, *letters = self.bound
            index = f"[{', '.join(letters)}]" if letters else ""
            terms.append(f"{'-' if self.sign < 0 else '+'} {name}{index}")
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
        raise _too_large()
    return HalfPlane(whole_i, whole_j, constant)


def _too_large() -> MaskProblem:
    return MaskProblem(
        LimitExceeded,
        f"a mask has coefficients up to {MAX_COEFFICIENT:,} and constants up to {MAX_CONSTANT:,}",
        None,
        "kernels compare positions as 32-bit integers",
    )


def plane_within(plane: HalfPlane, arg: Expr) -> HalfPlane:
    """A half-plane with an argument added to its constant: a number, or a declared tensor."""
    found = data_bound(arg)
    if found:
        return HalfPlane(plane.i, plane.j, plane.c, found, 1)
    constant = int(_affine(arg)[2])
    if constant > MAX_CONSTANT:
        raise _too_large()
    return HalfPlane(plane.i, plane.j, plane.c + constant)


def data_bound(arg: Expr) -> tuple[str, ...]:
    """A declared tensor that stands for a number, by name and index letters; () for another."""
    match arg:
        case Ref(name=name, index=index):
            return (name, *index)
        case Name(id=name, declared=declared) if declared is not None:
            return (name,)
    return ()


def is_bound(arg: Expr) -> bool:
    """Whether an argument is a whole number of at least 0, or a number a batch entry or head."""
    found = data_bound(arg)
    if found:
        return set(found[1:]) <= {"b", "h", "hkv"}
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
    hint = "write a term that depends on data into the score"
    if data_bound(expr):
        hint = f"a bound that is data is window({to_text(expr)}) or prefix({to_text(expr)})"
    elif isinstance(expr, Call) and expr.function == "abs":
        hint = "abs(i - j) <= 4 is window(4, 4), and abs(i - j) < 4 is window(3, 3)"
    raise MaskProblem(
        MaskNotAffine,
        f"{to_text(expr)!r} is not affine in i and j",
        getattr(expr, "span", None),
        "a mask compares sums of i, j and numbers, so that its tiles have closed-form bounds",
        hint,
    )
