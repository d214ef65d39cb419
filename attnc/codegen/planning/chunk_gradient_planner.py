"""The chunked backward's ways: walks that hold the state, or a program a chunk that loads it.

Walks move no state of a chunk through memory and come first wherever they compute all that is
wanted. A way is one list of passes with their candidates; its passes share the length of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from attnc.codegen.features import MIN_TILE, Features
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.channel_gates import chunk_gates_kernel
from attnc.codegen.kernels.channel_pairs import pairs_kernel
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gradient.carry import carry_kernel, dcarry_kernel, dstate_kernel
from attnc.codegen.kernels.gradient.channel_gradient import dpairs_kernel
from attnc.codegen.kernels.gradient.channel_value import channel_dvalue_kernel
from attnc.codegen.kernels.gradient.chunk_gradient import (
    dkey_kernel,
    dquery_kernel,
    dvalue_kernel,
)
from attnc.codegen.kernels.gradient.delta import delta_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.global_gradient import (
    global_dkey_kernel,
    global_dquery_kernel,
    global_dvalue_kernel,
)
from attnc.codegen.kernels.gradient.packed import packed_chunks
from attnc.codegen.kernels.gradient.reverse_scan import dscan_kernel
from attnc.codegen.kernels.gradient.value_gradient import sums_channels
from attnc.codegen.kernels.gradient.walk import why_no_walk
from attnc.codegen.kernels.scan import scan_kernel
from attnc.codegen.kernels.state import state_kernel
from attnc.codegen.plan import Request
from attnc.codegen.planning.channel_passes import inside_pass
from attnc.codegen.planning.fold_candidates import fold_passes
from attnc.codegen.planning.rank import rank_us
from attnc.codegen.planning.ranked_passes import (
    Candidates,
    RankedPass,
    fixed_pass,
    least_channels,
    rank_pass,
    whole_heads,
)
from attnc.codegen.planning.walk_candidates import chunk_sizes, walk_ways

Way = list[RankedPass]
# words of one tile of dq from which on the passes of decays a channel take eight warps
_CROWDED = 4096


def chunk_ways(request: Request, facts: GradientFacts, features: Features) -> list[Way]:
    """Every way that fits, the fastest by prediction first; where none does, one that does not."""
    chunk = ChunkFacts(
        request.variant, facts.algebra, features, request.dims, facts.printer, request.stateful,
        facts.min_columns, facts.min_columns,
        exact_folds=bool(facts.derivation.decay) and request.dtype in {"bf16", "fp16"},
    )  # fmt: skip
    walks = [] if why_no_walk(facts) else _walks(request, facts, chunk)
    chunks = _chunk_passes(request, facts, chunk)
    return [*walks, chunks] if not walks or _fits(chunks) else walks


def _walks(request: Request, facts: GradientFacts, chunk: ChunkFacts) -> list[Way]:
    walking = replace(chunk, walks=True)
    found: list[Way] = []
    for size in chunk_sizes(request, chunk):
        before = _folds(request, facts, chunk, size, kept=False)
        ways = [[*before, *last] for last in walk_ways(request, facts, walking, size)]
        found += [way for way in ways if _fits(way)]
        # products of 16 rows are worth no trial where longer chunks fit
        if found and (size <= 32 or isinstance(request.variant.chunk, int)):
            break
    return sorted(found, key=lambda way: _us(way, request))


def _fits(way: Way) -> bool:
    return all(ranked.steps for ranked in way)


def _us(way: Way, request: Request) -> float:
    return sum(rank_us(ranked.steps[0], request) for ranked in way)


def _chunk_passes(request: Request, facts: GradientFacts, chunk: ChunkFacts) -> Way:
    """All passes of one chunk size: the largest at which the last pass fits, and the rest of it."""
    makers: tuple[Callable[[ChunkFacts, GradientFacts], Kernel], ...]
    makers = (dquery_kernel, dkey_kernel, dvalue_kernel)
    before: tuple[Kernel, ...] = ()
    sizes = chunk_sizes(request, chunk)
    tile_k = whole_heads(request)[0]
    if facts.algebra.by_channel:
        makers = (dpairs_kernel, channel_dvalue_kernel)
        gates = chunk_gates_kernel(request.variant, facts.algebra, facts.printer)
        before = tuple(packed_chunks(kernel, facts) for kernel in (gates, pairs_kernel(chunk)))
        sizes = tuple(size for size in sizes if size * tile_k <= _CROWDED) or (MIN_TILE,)
    if facts.algebra.global_sum:
        makers = (global_dquery_kernel, global_dkey_kernel, global_dvalue_kernel)
    found: Way = []
    for size in sizes:
        inside = [RankedPass((inside_pass(request, k, size, tile_k),), ()) for k in before]
        last = [
            rank_pass(request, kernel, _chunk_tiles(request, facts, kernel.name, size))
            for kernel in (packed_chunks(make(chunk, facts), facts) for make in makers)
        ]
        found = [*inside, *_folds(request, facts, chunk, size, kept=True), *last]
        if all(ranked.steps for ranked in found):
            return found
    return found


def _chunk_tiles(request: Request, facts: GradientFacts, kernel: str, rows: int) -> Candidates:
    """Whole heads; only columns of dv do not depend on each other, and may be split.

    Where the declared value has a gradient summed over channels they do.
    """
    tile_k, tile_v = whole_heads(request)
    splits = kernel == "dvalue" and not sums_channels(facts)
    widths = (tile_v, tile_v // 2, tile_v // 4) if splits else (tile_v,)
    # dq, dk and the exponents of a chunk at once: eight warps hold them where four spill
    crowded = kernel == "dpairs" and rows * tile_k >= _CROWDED
    for width, warps in product(widths, (8,) if crowded else (4, 8)):
        if width == tile_v or width >= max(64, least_channels(request)):
            tiles = {"BC": rows, "BK": tile_k, "BV": width}
            if kernel == "dpairs":
                tiles["LEVELS"] = rows.bit_length() - 1
            yield tiles, warps, 1


def _folds(
    request: Request, facts: GradientFacts, chunk: ChunkFacts, rows: int, *, kept: bool
) -> Way:
    """States at segments, and where `kept` at chunks; folds whose programs split V alike."""
    tile_v = whole_heads(request)[1]
    passes: Way = []
    if facts.summed:
        passes.append(fixed_pass(request, delta_kernel(facts), {"BT": 64, "BV": tile_v}))
    kernels = [state_kernel(chunk), dstate_kernel(chunk, facts)]
    if kept and not facts.algebra.global_sum:
        kernels += [carry_kernel(chunk), dcarry_kernel(chunk, facts)]
    folds = fold_passes(request, [packed_chunks(kernel, facts) for kernel in kernels], {"BC": rows})
    if facts.algebra.global_sum:
        return [*passes, *folds]
    state, dstate, *at_chunks = folds
    scans = [
        fixed_pass(request, packed_chunks(kernel, facts), {"BC": rows, "BE": 512})
        for kernel in (scan_kernel(chunk), dscan_kernel(chunk))
    ]
    return [*passes, state, scans[0], dstate, scans[1], *at_chunks]
