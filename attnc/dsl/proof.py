"""What can be proved of a mask for every pair at once."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import floor

from attnc.dsl.half_plane import Clause, HalfPlane
from attnc.dsl.mask import CAUSAL, FULL, MaskForm


def is_causal(form: MaskForm) -> bool:
    """Whether the mask is exactly j <= i, in each sequence where some are packed."""
    return replace(form, packed=False) == CAUSAL


def is_full(form: MaskForm) -> bool:
    """Whether every query sees every key, of its own sequence where some are packed."""
    return replace(form, packed=False) == FULL


def distance(form: MaskForm) -> int | None:
    """N of a mask that is exactly i - j >= N, None of any other."""
    if form.tensors or len(form.clauses) != 1 or not form.clauses[0]:
        return None
    planes = form.clauses[0]
    if any(plane.bound or (plane.i, plane.j) != (1, -1) for plane in planes):
        return None
    return max(-plane.c for plane in planes)


def within_causal(form: MaskForm) -> bool:
    """Whether every visible pair provably has j <= i.

    The proof is a nonnegative combination of at most two half-planes of each clause, and of
    j >= 0, that gives i - j >= 0: in two dimensions no larger one is ever needed.
    """
    return all(_clause_within_causal(clause) for clause in form.clauses)


def _clause_within_causal(clause: Clause) -> bool:
    # what data bounds proves nothing, and makes the clause no larger
    planes = (*(plane for plane in clause if not plane.bound), HalfPlane(0, 1, 0))
    if any(_gives_causal(plane, plane) for plane in planes):
        return True
    return any(_gives_causal(a, b) for a, b in combinations(planes, 2))


def _gives_causal(a: HalfPlane, b: HalfPlane) -> bool:
    """Whether x * a + y * b = i - j + c with x, y >= 0 and c <= 0, so that i - j >= -c >= 0."""
    if a == b:
        # the plane itself, scaled
        return a.i > 0 and a.j == -a.i and floor(Fraction(a.c, a.i)) <= 0
    determinant = a.i * b.j - a.j * b.i
    if determinant == 0:
        return False
    x = Fraction(b.j + b.i, determinant)
    y = Fraction(-a.i - a.j, determinant)
    return x >= 0 and y >= 0 and floor(x * a.c + y * b.c) <= 0
