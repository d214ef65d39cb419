"""The tiles that a pass over pairs of a backward may have: what it holds by what it streams."""

from __future__ import annotations

from itertools import product

from attnc.codegen.features import MIN_TILE
from attnc.codegen.plan import Request
from attnc.codegen.planning.candidate import is_wide
from attnc.codegen.planning.ranked_passes import Candidates, whole_heads
from attnc.codegen.tile_lists import TileLists


def pair_tiles(
    request: Request, kernel: str, lists: TileLists | None, *, by_channel: bool
) -> Candidates:
    """Tiles of `dq`, which holds rows, or of `dkv`, which holds keys; of `lists`, inside blocks."""
    tile_k, tile_v = whole_heads(request)
    if by_channel:
        # every pair has a decay a channel, and all of them are held at once
        for warps in (4, 8, 16):
            yield {"BT": MIN_TILE, "BS": MIN_TILE, "BK": tile_k, "BV": tile_v}, warps, 1
        return
    held, streamed = (128, 64, 32, 16), (128, 64, 32, 16)
    for hold, stream, warps, stages in product(held, streamed, (8, 4), (3, 2, 1)):
        if is_wide(request) and (hold > 32 or stream > 32 or stages > 2):
            continue
        if hold < 16 * warps and not (warps == 4 and hold >= 32) and hold != 16:
            continue
        if stream > hold or (hold == 16 and warps == 8):
            continue
        if lists is not None and not lists.takes(hold, stream):
            continue
        rows, keys = (hold, stream) if kernel == "dq" else (stream, hold)
        yield {"BT": rows, "BS": keys, "BK": tile_k, "BV": tile_v}, warps, stages
