"""The second backend's plans of a backward over pairs: `dq` by rows, then `dkv` by keys.

Both passes hold two tiles a consumer group and stream two others; candidates do not interact.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.derive import derive
from attnc.codegen.gluon.fused_planner import fused_way
from attnc.codegen.gluon.gradient_cost import PairTiles, pair_step
from attnc.codegen.gluon.kernel import described
from attnc.codegen.gluon.planner import tile_columns
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.block_lists import list_kernel, listed_at_once
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.rows import rows_kernel
from attnc.codegen.plan import PassPlan, Plan, Rejected, Request
from attnc.codegen.planning.candidate import printer_for
from attnc.codegen.planning.gradient_planner import Made, plans_of
from attnc.codegen.planning.ranked_passes import RankedPass, fixed_pass, least_channels
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.codegen.warp_groups import GROUP_ROWS

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
    way, order_reason = ([], "") if request.deterministic else fused_way(request, facts)
    # behind the others, which cards have timed: tuning measures both
    ways += [way] if way else []
    helpers = tuple(sorted(printer.helpers))
    made = Made(*form, None, derivation, helpers, "gluon", bool(way), order_reason)
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
        step = pair_step(request, described(kernel), columns, tiles)
        needed, budget = step.cost.sram_bytes, request.device.sram_bytes
        if needed > budget:
            reason = f"needs {needed:,} B of SRAM, the budget is {budget:,} B"
            rejected.append(Rejected(str(step), reason))
        else:
            found.append(step)
    return RankedPass(tuple(found), tuple(rejected))
