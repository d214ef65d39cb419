"""The fused way of a backward: delta by rows, then dk, dv and dq's sum by keys, then dq by rows.

Five products for the seven of two passes; programs add to the sum of dq in any order.
Source: FlashAttention-2 (arXiv 2307.08691), section 3.2, whose backward adds to dq by atomics.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.gluon.gradient_cost import PairTiles, pair_step
from attnc.codegen.gluon.kernel import described
from attnc.codegen.gluon.planner import UNTIMED, tile_columns
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.fused_rows import cast_kernel, clear_kernel
from attnc.codegen.plan import Cost, PassPlan, Rejected, Request
from attnc.codegen.planning.any_order import FUSED_WAY, no_fused_way
from attnc.codegen.planning.ranked_passes import RankedPass
from attnc.codegen.planning.work import pass_work

# each group makes a part of a tile of dq, 64 rows by 64 channels: two groups have two
_CANDIDATES = {
    64: (PairTiles(64, 2, 2), PairTiles(128, 2, 2)),
    128: (PairTiles(64, 2, 2),),
}
# rows of a program that works by rows, and its warps
_ROWS, _WARPS = 64, 4


def _against(facts: GradientFacts) -> str:
    """Why a request has no fused way; empty where it has one."""
    if facts.algebra.mask.documents or facts.algebra.mask.blocks:
        return "data lists the tiles of this mask, and its lists are made for two passes"
    derived = facts.derivation
    of_score = [*derived.score, *derived.sink, *derived.factor]
    if of_score:
        return (
            f"the gradient of {of_score[0]} needs what each row's score gradients add up to, which "
            "the dq pass knows"
        )
    return ""


def fused_way(request: Request, facts: GradientFacts) -> tuple[list[RankedPass], str]:
    """The passes with their candidates, and a line on them; none with the reason against them."""
    why = _against(facts)
    if why:
        return [], no_fused_way(why)
    kernel = columns_kernel(facts, fused=True)
    columns = tile_columns(max(request.dims))
    steps = [pair_step(request, described(kernel), columns, t) for t in _CANDIDATES[columns]]
    over = [step for step in steps if step.cost.sram_bytes > request.device.sram_bytes]
    if len(over) == len(steps):
        needed, budget = over[-1].cost.sram_bytes, request.device.sram_bytes
        why = f"it needs {needed:,} B of SRAM, the budget is {budget:,} B"
        return [], no_fused_way(why)
    fitting = tuple(step for step in steps if step not in over)
    way = [_by_rows(request, clear_kernel(facts)), RankedPass(fitting, ())]
    way.append(_by_rows(request, cast_kernel(facts)))
    told = "; ".join(str(ranked.steps[0]) for ranked in way)
    way[1] = RankedPass(fitting, (Rejected(told, UNTIMED),))
    return way, f"{FUSED_WAY}, {UNTIMED}"


def _by_rows(request: Request, kernel: Kernel) -> RankedPass:
    """A pass whose programs have a tile of rows in registers, and nothing shared."""
    columns = tile_columns(max(request.dims))
    tiles = {"BT": _ROWS, "BK": columns, "BV": columns}
    hbm_bytes, flops = pass_work(request, kernel, tiles)
    words = 2 * _ROWS * columns // (_WARPS * request.device.warp_size)
    seconds = hbm_bytes / (request.device.tbps * 1e12)
    cost = Cost(0, 24 + words, int(hbm_bytes), int(flops), seconds * 1e6, ())
    # its sizes are constants of the module
    kernel = replace(kernel, constants=())
    return RankedPass((PassPlan(kernel, tuple(tiles.items()), _WARPS, 1, cost),), ())
