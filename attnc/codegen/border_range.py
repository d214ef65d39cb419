"""The tiles at the border of a folded term: pairs that its state does not hold.

A key enters the state LAG chunks after its own, once the rows of a chunk have read it. So a row
finds there the keys of all chunks before (row // BC - LAG), and the pairs that are left have a
bound by chunks beside their mask: from below for keys of rows, from above for rows of keys.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.tile_range import KEYS, ROWS, KeyRange, mirrored, range_over
from attnc.dsl.mask import MaskForm

_KEYS = replace(KEYS, floor=("(first // BC - LAG) * BC", "(last // BC - LAG) * BC"))
_ROWS = replace(ROWS, ceiling=("(last // BC + LAG + 1) * BC", "(first // BC + LAG + 1) * BC"))


def border_keys(mask: MaskForm) -> KeyRange:
    """Bounds and loops over key tiles, for rows [first, last]; queries and keys are one length."""
    return range_over(mask, _KEYS)


def border_rows(mask: MaskForm) -> KeyRange:
    """Bounds and loops over row tiles, for keys [first, last]."""
    return range_over(mirrored(mask), _ROWS)


def border_line(row: str, key: str) -> str:
    """What a tile with mask code adds to it: the key is in no state that the row reads."""
    return f"m_st = m_st & ({key} >= ({row} // BC - LAG) * BC)"
