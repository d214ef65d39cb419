"""The passes that fold states for a backward: their programs split V alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import Request
from attnc.codegen.planning.candidate import is_wide
from attnc.codegen.planning.ranked_passes import (
    Candidates,
    RankedPass,
    least_channels,
    rank_pass,
    whole_heads,
)


def fold_passes(
    request: Request, kernels: Sequence[Kernel], chunks: Mapping[str, int]
) -> list[RankedPass]:
    """The kernels with their candidates, of `chunks` as tiles say them."""
    folds = [rank_pass(request, kernel, _tiles(request, chunks)) for kernel in kernels]
    widths = [step.tile["BV"] for step in folds[0].steps]
    for width in dict.fromkeys(widths):
        alike = [
            RankedPass(tuple(s for s in fold.steps if s.tile["BV"] == width), fold.rejected)
            for fold in folds
        ]
        if all(fold.steps for fold in alike):
            return alike
    return folds


def _tiles(request: Request, chunks: Mapping[str, int]) -> Candidates:
    rows = chunks["BC"]
    tile_k, tile_v = whole_heads(request)
    least = least_channels(request)
    widths = [width for width in (256, 128, 64, 32, 16) if least <= width <= tile_v]
    if is_wide(request):
        widths = [width for width in widths if width <= 64]
    for width, warps, stages in product(widths[:3], (8, 4), (3, 2, 1)):
        if rows >= 16 * warps or (warps == 4 and rows <= 64):
            yield {**chunks, "BK": tile_k, "BV": width}, warps, stages
