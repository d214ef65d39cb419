"""Which walks a backward may take, and the tiles of each.

Programs share the rows of a state where dk or dq is walked, its columns where dv is: the products
inside a chunk are then made once a program, and the state that each holds is a share of the whole.
"""

from __future__ import annotations

from itertools import product

from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.folded_walk import (
    folded_dk_kernel,
    folded_dkv_kernel,
    folded_dq_kernel,
    folded_dv_kernel,
)
from attnc.codegen.kernels.gradient.packed import packed_chunks
from attnc.codegen.kernels.gradient.walk import (
    WALKS,
    walk_dk_kernel,
    walk_dkv_kernel,
    walk_dq_kernel,
    walk_dv_kernel,
)
from attnc.codegen.plan import Request
from attnc.codegen.planning.candidate import is_wide
from attnc.codegen.planning.chunk_planner import lag_of
from attnc.codegen.planning.ranked_passes import (
    Candidates,
    RankedPass,
    least_channels,
    rank_pass,
    whole_heads,
)


def chunk_sizes(request: Request, chunk: ChunkFacts) -> tuple[int, ...]:
    """The tokens that a chunk of a backward may have, the most first."""
    declared = request.variant.chunk
    if isinstance(declared, int):
        return tuple(size for size in (128, 64, 32, 16) if size <= declared)
    if is_wide(request):
        # split products double what stands in registers: wide heads and monomials take 16 rows
        return (32, 16) if chunk.features.direct and sum(whole_heads(request)) <= 128 else (16,)
    return (64, 32, 16)


def walk_ways(
    request: Request, facts: GradientFacts, chunk: ChunkFacts, rows: int
) -> list[list[RankedPass]]:
    """The passes that come after the folds: dk and dv in one walk, or in one each."""
    makers = (walk_dq_kernel, walk_dkv_kernel, walk_dk_kernel, walk_dv_kernel)
    if chunk.lagging:
        makers = (folded_dq_kernel, folded_dkv_kernel, folded_dk_kernel, folded_dv_kernel)
    dq, dkv, dk, dv = (
        rank_pass(
            request,
            packed_chunks(make(chunk, facts), facts),
            _tiles(request, chunk, name, {"BC": rows, **lag_of(facts.algebra, rows)}),
        )
        for name, make in zip(WALKS, makers, strict=True)
    )
    return [[dq, dkv], [dq, dk, dv]]


def _tiles(request: Request, chunk: ChunkFacts, name: str, chunks: dict[str, int]) -> Candidates:
    rows = chunks["BC"]
    tile_k, tile_v = whole_heads(request)
    least = max(16 if is_wide(request) else 64, least_channels(request))
    widths = {"walk_dq": tile_k, "walk_dk": tile_k, "walk_dv": tile_v}
    # monomials are made of all channels, and what a row adds up to is a sum over all features
    apart = chunk.features.direct and not chunk.lagging
    split = name in widths and (apart or name == "walk_dv")
    whole = widths.get(name, tile_k)
    shares = [whole >> n for n in range(3) if n == 0 or (split and whole >> n >= least)]
    for share, warps, stages in product(shares, (4, 8), (2, 1, 3)):
        if rows < 16 * warps and warps == 8 and rows < 64:
            continue
        tiles = {**chunks, "BK": tile_k, "BV": tile_v}
        if name in widths:
            tiles["BV" if name == "walk_dv" else "BK"] = share
        yield tiles, warps, stages
