"""How many keys rows see: of a mask, of all terms of a sum, of those that no state holds."""

from __future__ import annotations

from math import ceil

from attnc.codegen.plan import Request
from attnc.dsl.mask import MaskForm
from attnc.dsl.sum import folded_term, terms_but
from attnc.dsl.variant import Variant

_SAMPLED_ROWS = 64


def visible_fraction(mask: MaskForm, tq: int, tk: int) -> float:
    """The share of the TQ * TK pairs that a mask keeps, from rows spread over the queries.

    A bound that data gives is taken to be half of the keys.
    """
    rows = range(0, tq, max(1, tq // _SAMPLED_ROWS))
    seen = sum(_visible_keys(mask, row + tk - tq, tk) for row in rows)
    return seen / (len(rows) * tk)


def visited_fraction(variant: Variant, tq: int, tk: int) -> float:
    """The share of the pairs that are computed: those of every term, where there are several."""
    return sum(visible_fraction(p.mask_form, tq, tk) for p in variant.terms or (variant,))


def border_keys(distance: int, rows: int) -> float:
    """Keys a row, on average, that are `distance` tokens back or more and in no chunk's state yet.

    A chunk's rows read a state that ends where the first of them sees whole chunks of `rows` keys.
    """
    lag = ceil(max(distance - 1, 0) / rows) * rows
    return lag - distance + (rows + 1) / 2


def _visible_keys(mask: MaskForm, position: int, tk: int) -> int:
    runs: list[tuple[int, int]] = []
    for clause in mask.clauses:
        low, high = 0, tk - 1
        for plane in clause:
            value = plane.i * position + plane.c + plane.sign * (tk // 2)
            if plane.j == 0:
                high = high if value >= 0 else -1
            elif plane.j < 0:
                high = min(high, value // -plane.j)
            else:
                low = max(low, ceil(-value / plane.j))
        if low <= high:
            runs.append((low, high))
    count, end = 0, -1
    for low, high in sorted(runs):
        count += max(0, high - max(low, end + 1) + 1)
        end = max(end, high)
    return count


def near_keys(variant: Variant, folded: int, tokens: int) -> float:
    """Keys a row, on average, that the terms of a sum see but for the folded one."""
    others = terms_but(variant, folded)
    return sum(visible_fraction(term.mask_form, tokens, tokens) for term in others) * tokens


def walked_terms(request: Request) -> tuple[Variant, ...]:
    """What a step's walks over a cache are of: all terms but one that a state holds."""
    terms = request.variant.terms or (request.variant,)
    found = folded_term(request.variant) if request.cache == "folded" else None
    return terms if found is None else terms_but(request.variant, found[0])
