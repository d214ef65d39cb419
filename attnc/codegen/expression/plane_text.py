"""Half-planes as the text that a kernel compares: what a person would write for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attnc.dsl.half_plane import MAX_CONSTANT, HalfPlane
from attnc.dsl.mask import MaskForm


def condition(mask: MaskForm, row: str, column: str) -> str:
    """Whether position `row` sees key `column`, as text over column and row vectors."""
    clauses = [
        " & ".join(_wrapped(plane, row, column, len(clause) > 1) for plane in clause)
        for clause in mask.clauses
    ]
    if len(clauses) == 1:
        return clauses[0]
    return " | ".join(f"({clause})" for clause in clauses)


def _wrapped(plane: HalfPlane, row: str, column: str, several: bool) -> str:
    text = plane_text(plane, row, column)
    return f"({text})" if several else text


def plane_text(plane: HalfPlane, row: str, column: str) -> str:
    """One half-plane the way a person writes it: `i >= j`, `j >= i - 128`, `j < 64`."""
    if plane.j == 0:
        if plane.i == 1:
            return f"{row} >= {lesser(plane)}"
        if plane.i == -1:
            return f"{row} <= {greater(plane)}"
        return f"{greater(plane, plane.i, row)} >= 0"
    if plane.j == -1:
        return f"{column} <= {greater(plane, plane.i, row)}"
    if plane.j == 1:
        return f"{column} >= {lesser(plane, plane.i, row)}"
    scaled = _affine(plane.j, column, 0)
    if plane.i == 0:
        return f"{scaled} >= {lesser(plane)}"
    return f"{scaled} + {_affine(plane.i, row, 0)} >= {lesser(plane)}"


def greater(plane: HalfPlane, coefficient: int = 0, name: str = "", more: int = 0) -> str:
    """coefficient * name + the plane's constant, and `more`."""
    return _affine(coefficient, name, plane.c + more, plane.bound, plane.sign)


def lesser(plane: HalfPlane, coefficient: int = 0, name: str = "") -> str:
    """The same negated: what a positive side of the half-plane is at least."""
    return _affine(-coefficient, name, -plane.c, plane.bound, -plane.sign)


def _affine(
    coefficient: int, name: str, constant: int, bound: tuple[str, ...] = (), sign: int = 0
) -> str:
    """coefficient * name + sign * bound + constant."""
    terms = [(coefficient, name), (sign, bound_name(bound) if bound else "")]
    terms = [(factor, term) for factor, term in terms if factor]
    if not terms:
        return str(constant)
    # a positive term first, where there is one
    terms.sort(key=lambda item: item[0] < 0)
    text = ""
    for factor, term in terms:
        size = term if abs(factor) == 1 else f"{abs(factor)} * {term}"
        minus = "-" if factor < 0 else ""
        text = f"{text} {minus or '+'} {size}" if text else f"{minus}{size}"
    if constant > 0:
        return f"{text} + {constant}"
    if constant < 0:
        return f"{text} - {-constant}"
    return text


def bound_name(bound: tuple[str, ...]) -> str:
    """What a kernel calls a declared number that bounds the mask."""
    return f"n_u_{bound[0]}"


def bound_lines(bounds: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Load declared numbers; "no bound" may be a number whose sum with a position overflows."""
    for bound in bounds:
        name, *letters = bound
        place = "".join(f" + i_{letter} * stride_u_{name}_{letter}" for letter in letters)
        held = bound_name(bound)
        yield f"{held} = tl.load(u_{name}{place}).to(tl.float32)"
        yield (
            f"{held} = tl.minimum(tl.maximum({held}, -{MAX_CONSTANT}.0), {MAX_CONSTANT}.0)"
            ".to(tl.int32)"
        )
