"""The mask of one tile, for the loops that carry mask code."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.tile_range import condition
from attnc.dsl.mask import FULL


def visible_lines(algebra: Algebra) -> tuple[str, ...]:
    """`m_st` = which pairs of the tile are visible; padding never is."""
    if algebra.mask == FULL:
        return ("m_st = m_s[None, :]",)
    line = f"m_st = {condition(algebra.mask, 'b_i[:, None]', 'o_s[None, :]')}"
    if algebra.within_causal:
        # no row of the tensor reaches past its own position, so none reaches past TK
        return (line,)
    return (line, "m_st = m_st & m_s[None, :]")
