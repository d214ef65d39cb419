"""The second backend's plans of a backward over pairs: `dq` by rows, then `dkv` by keys.

Both passes hold two tiles a consumer group and stream two others; candidates do not interact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.candidate import printer_for
from attnc.codegen.derive import derive
from attnc.codegen.gluon.kernel import described
from attnc.codegen.gluon.planner import BARRIER, aligned, tile_columns
from attnc.codegen.gradient_planner import Made, plans_of
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.block_lists import list_kernel, listed_at_once
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.rows import rows_kernel
from attnc.codegen.plan import DTYPES, BufferUse, Cost, PassPlan, Plan, Rejected, Request
from attnc.codegen.ranked_passes import RankedPass, fixed_pass, least_channels
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.codegen.warp_groups import GROUP_ROWS
from attnc.codegen.work import pass_work

# what partitions are handed: by all kernels, by argument, and by partition
_HANDED, _HANDED_ARGUMENT, _HANDED_PARTITION = 288, 16, 4
# registers that a thread needs beside its tiles
_BESIDE = 24


@dataclass(frozen=True, slots=True)
class PairTiles:
    """What a step streams, in rows or keys; consumer groups of 64; stages of what is streamed."""

    streamed: int
    groups: int
    stages: int


# in order of what an H100 measured of such kernels, by pass and by width of the head
_CANDIDATES = {
    ("dq", 64): (PairTiles(128, 2, 2), PairTiles(64, 2, 3), PairTiles(64, 3, 3)),
    ("dq", 128): (PairTiles(128, 2, 2), PairTiles(64, 2, 2), PairTiles(64, 2, 3)),
    ("dkv", 64): (PairTiles(128, 2, 2), PairTiles(64, 3, 3), PairTiles(64, 2, 3)),
    ("dkv", 128): (PairTiles(64, 2, 2), PairTiles(64, 2, 3), PairTiles(32, 2, 3)),
}


def gluon_gradient_plans(
    request: Request, algebra: Algebra, form: tuple[str, str]
) -> tuple[tuple[Plan, ...], tuple[Rejected, ...]]:
    """Plans in order of rank, none where a pass fits no tile; and the candidates that do not fit.

    `form` is the form and why it is taken.
    """
    derivation = derive(request.variant, algebra, request.wanted)
    printer = printer_for(request)
    facts = GradientFacts(
        request.variant, algebra, derivation, request.dims, printer, least_channels(request)
    )
    sides = [tile_lists(algebra.mask, of_rows=of_rows) for of_rows in (True, False)]
    listings = [
        fixed_pass(
            request,
            list_kernel(request.variant, algebra, lists),
            {"BN": listed_at_once(algebra.mask, lists)},
        )
        for lists in sides
        if lists is not None
    ]
    kernels = (rows_kernel(facts), columns_kernel(facts))
    ranked = [
        _ranked(request, kernel, algebra, lists)
        for kernel, lists in zip(kernels, sides, strict=True)
    ]
    ways = [[*listings, *ranked]]
    rejected = tuple(item for found in ranked for item in found.rejected)
    if not all(found.steps for found in ranked):
        return (), rejected
    helpers = tuple(sorted(printer.helpers))
    made = Made(*form, None, derivation, helpers, backend="gluon")
    return plans_of(request, algebra, ways, made), rejected


def _ranked(
    request: Request, kernel: Kernel, algebra: Algebra, lists: TileLists | None
) -> RankedPass:
    columns = tile_columns(max(request.dims))
    found: list[PassPlan] = []
    rejected: list[Rejected] = []
    candidates: tuple[PairTiles, ...] = _CANDIDATES[kernel.name, columns]
    if kernel.name == "dkv" and not algebra.plain_score:
        # beside dk and dv few threads have registers for what a score computes of its pairs
        roomy = lambda tiles: (tiles.streamed > GROUP_ROWS, tiles.groups > 2)  # noqa: E731
        candidates = tuple(sorted(candidates, key=roomy))
    for tiles in candidates:
        if lists is not None and not lists.takes(GROUP_ROWS * tiles.groups, tiles.streamed):
            continue
        step = _step(request, described(kernel), columns, tiles)
        needed, budget = step.cost.sram_bytes, request.device.sram_bytes
        if needed > budget:
            reason = f"needs {needed:,} B of SRAM, the budget is {budget:,} B"
            rejected.append(Rejected(str(step), reason))
        else:
            found.append(step)
    return RankedPass(tuple(found), tuple(rejected))


def _step(request: Request, kernel: Kernel, columns: int, tiles: PairTiles) -> PassPlan:
    held = GROUP_ROWS * tiles.groups
    by_rows = kernel.name == "dq"
    rows, keys = (held, tiles.streamed) if by_rows else (tiles.streamed, held)
    sizes = {"BT": rows, "BS": keys, "BK": columns, "BV": columns, "NW": tiles.groups}
    buffers = _buffers(request, kernel, held, columns, tiles)
    # two tiles of pairs, one as the left side of a product, and the accumulators; 128 threads
    totals = 1 if by_rows else 2
    words = (2.5 * tiles.streamed + totals * columns) * GROUP_ROWS / 128
    hbm_bytes, flops = pass_work(request, kernel, sizes)
    seconds = max(hbm_bytes / (request.device.tbps * 1e12), flops / (request.device.tflops * 1e12))
    cost = Cost(
        sum(use.nbytes * use.copies for use in buffers),
        _BESIDE + int(words),
        int(hbm_bytes),
        int(flops),
        seconds * 1e6,
        buffers,
    )
    return PassPlan(kernel, tuple(sizes.items()), 4 * (tiles.groups + 1), tiles.stages, cost)


def _buffers(
    request: Request, kernel: Kernel, held: int, columns: int, tiles: PairTiles
) -> tuple[BufferUse, ...]:
    item, dtype = DTYPES[request.dtype], request.dtype
    names = ("b_q", "b_do", "b_k", "b_v") if kernel.name == "dq" else ("b_k", "b_v", "b_q", "b_do")
    of_held = ((held, columns), dtype, "sram", held * columns * item)
    moved = ((tiles.streamed, columns), dtype, "sram", tiles.streamed * columns * item)
    # lse and delta of the rows that a step streams come beside them
    brought = () if kernel.name == "dq" else ("b_m", "b_d")
    row = BufferUse("", (tiles.streamed,), "fp32", "sram", 4 * tiles.streamed, tiles.stages)
    arrays = 5 if brought else 4
    barriers = aligned(tiles.groups * BARRIER) + arrays * aligned(tiles.stages * BARRIER)
    given = [tensor for tensor in kernel.tensors if tensor.box is None]
    more = sum(1 + len(tensor.strides) for tensor in given)
    handed = _HANDED + _HANDED_PARTITION * (tiles.groups + 1) + more * _HANDED_ARGUMENT
    return (
        BufferUse(names[0], *of_held),
        BufferUse(names[1], *of_held),
        BufferUse(names[2], *moved, tiles.stages),
        BufferUse(names[3], *moved, tiles.stages),
        *(replace(row, name=name) for name in brought),
        BufferUse("bars", (barriers,), "int8", "sram", barriers),
        BufferUse("args", (handed,), "int8", "sram", handed),
    )
