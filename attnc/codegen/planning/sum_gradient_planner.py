"""The chunked backward of a sum: walks for what a state carries, passes over pairs for the rest.

A way is one list of passes that share the length of a chunk. What the state of the folded term
gives comes first, and the passes over pairs go on from it over the border and the other terms.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.features import Features
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.delta import delta_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.folded_walk import folded_dstate_kernel
from attnc.codegen.kernels.gradient.packed import packed_chunks
from attnc.codegen.kernels.gradient.reverse_scan import dscan_kernel
from attnc.codegen.kernels.gradient.rows import rows_kernel
from attnc.codegen.kernels.scan import scan_kernel
from attnc.codegen.kernels.state import state_kernel
from attnc.codegen.plan import Request
from attnc.codegen.planning.chunk_planner import lag_of
from attnc.codegen.planning.fold_candidates import fold_passes
from attnc.codegen.planning.pair_candidates import pair_tiles
from attnc.codegen.planning.rank import rank_us
from attnc.codegen.planning.ranked_passes import RankedPass, fixed_pass, rank_pass, whole_heads
from attnc.codegen.planning.walk_candidates import chunk_sizes, walk_ways

Way = list[RankedPass]


def sum_ways(request: Request, facts: GradientFacts, features: Features) -> list[Way]:
    """Every way that fits, the fastest by prediction first; where none does, one that does not."""
    algebra = facts.algebra
    assert algebra.folded is not None, "a term is folded"
    whole = replace(facts, bordered=True)
    chunk = ChunkFacts(
        request.variant.terms[algebra.folded], algebra.state, features, request.dims,
        facts.printer, False, facts.min_columns, facts.min_columns, lagging=True,
    )  # fmt: skip
    found: list[Way] = []
    refused: list[Way] = []
    for rows in chunk_sizes(request, chunk):
        chunks = {"BC": rows, **lag_of(algebra, rows)}
        before = _folds(request, whole, chunk, chunks)
        walks = walk_ways(request, whole, replace(chunk, walks=True), rows)
        if not any(_fits([*before, *way]) for way in walks):
            refused += [[*before, *way] for way in walks]
            continue
        after = _pairs(request, whole, chunks)
        ways = [[*before, *way, *after] for way in walks]
        found += [way for way in ways if _fits(way)]
        refused += [way for way in ways if not _fits(way)]
        # products of 16 rows are worth no trial where longer chunks fit
        if found and rows <= 32:
            break
    return sorted(found, key=lambda way: _us(way, request)) or refused[:1]


def _folds(
    request: Request, facts: GradientFacts, chunk: ChunkFacts, chunks: dict[str, int]
) -> Way:
    """delta of every row, and the states between segments from both sides."""
    delta = fixed_pass(request, delta_kernel(facts), {"BT": 64, "BV": whole_heads(request)[1]})
    kernels = (state_kernel(chunk), folded_dstate_kernel(chunk, facts))
    state, dstate = fold_passes(request, [packed_chunks(k, facts) for k in kernels], chunks)
    scan, dscan = (
        fixed_pass(request, packed_chunks(kernel, facts), {"BC": chunks["BC"], "BE": 512})
        for kernel in (scan_kernel(chunk), dscan_kernel(chunk))
    )
    return [delta, state, scan, dstate, dscan]


def _pairs(request: Request, facts: GradientFacts, chunks: dict[str, int]) -> Way:
    return [
        rank_pass(
            request,
            kernel,
            (
                ({**chunks, **tiles}, warps, stages)
                for tiles, warps, stages in pair_tiles(request, kernel.name, None, by_channel=False)
            ),
        )
        for kernel in (rows_kernel(facts), columns_kernel(facts))
    ]


def _fits(way: Way) -> bool:
    return all(ranked.steps for ranked in way)


def _us(way: Way, request: Request) -> float:
    return sum(rank_us(ranked.steps[0], request) for ranked in way)
