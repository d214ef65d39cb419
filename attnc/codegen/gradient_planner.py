"""Algebra -> Plan of a backward: each pass has candidates of its own, and they do not interact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from attnc.codegen.algebra import Algebra
from attnc.codegen.candidate import is_wide, pass_plan, printer_for, refuse, state_too_large
from attnc.codegen.derive import derive
from attnc.codegen.features import MIN_TILE, Features, features_of, power_of_two
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.block_lists import list_kernel, listed_at_once
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gates import gates_kernel
from attnc.codegen.kernels.gradient.carry import carry_kernel, dcarry_kernel, dstate_kernel
from attnc.codegen.kernels.gradient.chunk_gradient import (
    dkey_kernel,
    dquery_kernel,
    dvalue_kernel,
)
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.delta import delta_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.gate_sums import dgates_kernel
from attnc.codegen.kernels.gradient.global_gradient import (
    global_dkey_kernel,
    global_dquery_kernel,
    global_dvalue_kernel,
)
from attnc.codegen.kernels.gradient.reverse_scan import dscan_kernel
from attnc.codegen.kernels.gradient.rows import rows_kernel
from attnc.codegen.kernels.gradient.value_gradient import sums_channels
from attnc.codegen.kernels.scan import scan_kernel
from attnc.codegen.kernels.state import state_kernel
from attnc.codegen.plan import PassPlan, Plan, Rejected, Request
from attnc.codegen.rank import rank_us
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.errors import PlanError

Candidates = Iterator[tuple[dict[str, int], int, int]]


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The legal candidates of one pass, the fastest by prediction first, and the refused ones."""

    steps: tuple[PassPlan, ...]
    rejected: tuple[Rejected, ...]


def gradient_plans(request: Request, algebra: Algebra, form: str, reason: str) -> tuple[Plan, ...]:
    """Every plan of a backward: plan n takes each pass's n-th candidate, or its last.

    Raises:
        PlanError: no tile of some pass fits the budget.
    """
    derivation = derive(request.variant, algebra, request.wanted)
    printer = printer_for(request)
    facts = GradientFacts(
        request.variant, algebra, derivation, request.dims, printer, _least(request)
    )
    features: Features | None = None
    passes: list[_Ranked] = []
    if form == "chunked":
        features = _features(request, algebra)
        too_large = state_too_large(request, features)
        passes = [] if too_large else _chunk_passes(request, facts, features)
        if not passes or not all(ranked.steps for ranked in passes):
            why = too_large or _last_reason(passes)
            if request.stateful or request.form is not None:
                raise _no_fit(request, why)
            form, reason = "parallel", f"no tile of the chunked backward fits: {why}"
            features = None
    if form != "chunked":
        passes = _pair_passes(request, facts)
        if not all(ranked.steps for ranked in passes):
            raise _no_fit(request, _last_reason(passes))
    rejected = tuple(item for ranked in passes for item in ranked.rejected)
    count = max(len(ranked.steps) for ranked in passes)
    found = []
    for n in range(count):
        steps = tuple(ranked.steps[min(n, len(ranked.steps) - 1)] for ranked in passes)
        found.append(
            Plan(
                variant=request.variant,
                algebra=algebra,
                features=features,
                device=request.device,
                dims=request.dims,
                dtype=request.dtype,
                form=form,
                form_reason=reason,
                stateful=request.stateful,
                precision=request.precision,
                workload=request.workload,
                passes=steps,
                helpers=tuple(sorted(printer.helpers)),
                programs=request.device.sms * 2,
                min_chunks=4,
                rejected=rejected,
                derivation=derivation,
            )
        )
    return tuple(found)


def _last_reason(passes: Sequence[_Ranked]) -> str:
    return next(
        (ranked.rejected[-1].reason for ranked in passes if not ranked.steps and ranked.rejected),
        "no chunk size is legal",
    )


def _no_fit(request: Request, why: str) -> PlanError:
    head_dim, value_dim = request.dims
    return PlanError(
        f"no tile of the backward of {request.variant.name!r} at K={head_dim}, V={value_dim}, "
        f"{request.dtype} fits {request.device.sram_bytes:,} B of SRAM",
        notes=(why,),
        hints=("raise the budget, use a smaller head dim, or a 16-bit dtype",),
    )


def _features(request: Request, algebra: Algebra) -> Features:
    least = _least(request)
    return features_of(algebra, request.dims[0], narrowest=least, channels=least)


def _least(request: Request) -> int:
    """The narrowest tile of channels: gradients are products over K's too, so both are padded.

    fp32 tiles have too few rows for the warp-group products that go wrong on narrow operands.
    """
    return MIN_TILE if is_wide(request) else max(MIN_TILE, request.device.min_columns)


def _tiles(request: Request) -> tuple[int, int]:
    """BK and BV: whole heads, in powers of two."""
    least = _least(request)
    head_dim, value_dim = request.dims
    return max(least, power_of_two(head_dim)), max(least, power_of_two(value_dim))


def _rank(request: Request, kernel: Kernel, candidates: Candidates) -> _Ranked:
    legal: list[tuple[float, tuple[int, ...], PassPlan]] = []
    rejected: list[Rejected] = []
    for tiles, warps, stages in candidates:
        step = pass_plan(request, kernel, tiles, warps, stages)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
        else:
            order = (*(-size for size in tiles.values()), warps, stages)
            legal.append((rank_us(step, request), order, step))
    legal.sort(key=lambda item: item[:2])
    return _Ranked(tuple(step for _, _, step in legal), tuple(rejected))


def _fixed(request: Request, kernel: Kernel, tiles: dict[str, int]) -> _Ranked:
    return _Ranked((pass_plan(request, kernel, tiles, 4, 1),), ())


def _pair_passes(request: Request, facts: GradientFacts) -> list[_Ranked]:
    gated = facts.algebra.decay == "gated"
    passes: list[_Ranked] = []
    if gated:
        gates = gates_kernel(request.variant, facts.algebra, facts.printer)
        passes.append(_fixed(request, gates, {"BC": 1024}))
    sides = [tile_lists(facts.algebra.mask, of_rows=of_rows) for of_rows in (True, False)]
    for lists in sides:
        if lists is not None:
            listing = list_kernel(request.variant, facts.algebra, lists)
            tiles = {"BN": listed_at_once(facts.algebra.mask, lists)}
            passes.append(_fixed(request, listing, tiles))
    for kernel, lists in zip((rows_kernel(facts), columns_kernel(facts)), sides, strict=True):
        passes.append(_rank(request, kernel, _pair_tiles(request, kernel.name, lists)))
    if gated and facts.derivation.decay:
        passes.append(_fixed(request, dgates_kernel(facts), {"BC": 1024}))
    return passes


def _pair_tiles(request: Request, kernel: str, lists: TileLists | None) -> Candidates:
    tile_k, tile_v = _tiles(request)
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


def _chunk_passes(request: Request, facts: GradientFacts, features: Features) -> list[_Ranked]:
    """All passes of one chunk size: the largest at which the last pass fits, and the rest of it."""
    chunk = ChunkFacts(
        request.variant, facts.algebra, features, request.dims, facts.printer, request.stateful,
        facts.min_columns, facts.min_columns,
        exact_folds=bool(facts.derivation.decay) and request.dtype in {"bf16", "fp16"},
    )  # fmt: skip
    makers = (dquery_kernel, dkey_kernel, dvalue_kernel)
    if facts.algebra.global_sum:
        makers = (global_dquery_kernel, global_dkey_kernel, global_dvalue_kernel)
    declared = request.variant.chunk
    sizes: tuple[int, ...] = (64, 32, 16)
    if is_wide(request):
        # split products double what stands in registers: wide heads and monomials take 16 rows
        sizes = (32, 16) if features.direct and sum(_tiles(request)) <= 128 else (16,)
    if isinstance(declared, int):
        sizes = tuple(size for size in (128, 64, 32, 16) if size <= declared)
    found: list[_Ranked] = []
    for size in sizes:
        last = [
            _rank(request, kernel, _chunk_tiles(request, facts, kernel.name, size))
            for kernel in (make(chunk, facts) for make in makers)
        ]
        found = [*_folds(request, facts, chunk, size), *last]
        if all(ranked.steps for ranked in found):
            return found
    return found


def _chunk_tiles(request: Request, facts: GradientFacts, kernel: str, rows: int) -> Candidates:
    """Whole heads; only columns of dv do not depend on each other, and may be split.

    Where the declared value has a gradient summed over channels they do.
    """
    tile_k, tile_v = _tiles(request)
    splits = kernel == "dvalue" and not sums_channels(facts)
    widths = (tile_v, tile_v // 2, tile_v // 4) if splits else (tile_v,)
    for width, warps in product(widths, (4, 8)):
        if width == tile_v or width >= max(64, _least(request)):
            yield {"BC": rows, "BK": tile_k, "BV": width}, warps, 1


def _fold_tiles(request: Request, rows: int) -> Candidates:
    tile_k, tile_v = _tiles(request)
    least = _least(request)
    widths = [width for width in (256, 128, 64, 32, 16) if least <= width <= tile_v]
    if is_wide(request):
        widths = [width for width in widths if width <= 64]
    for width, warps, stages in product(widths[:3], (8, 4), (3, 2, 1)):
        if rows >= 16 * warps or (warps == 4 and rows <= 64):
            yield {"BC": rows, "BK": tile_k, "BV": width}, warps, stages


def _folds(request: Request, facts: GradientFacts, chunk: ChunkFacts, rows: int) -> list[_Ranked]:
    """States at chunks: four folds whose programs split V alike, and the scans between."""
    tile_v = _tiles(request)[1]
    passes: list[_Ranked] = []
    if facts.summed:
        passes.append(_fixed(request, delta_kernel(facts), {"BT": 64, "BV": tile_v}))
    makers: tuple[Callable[[], Kernel], ...] = (
        lambda: state_kernel(chunk),
        lambda: dstate_kernel(chunk, facts),
        lambda: carry_kernel(chunk),
        lambda: dcarry_kernel(chunk, facts),
    )
    if facts.algebra.global_sum:
        makers = makers[:2]
    folds = [_rank(request, make(), _fold_tiles(request, rows)) for make in makers]
    widths = [step.tile["BV"] for step in folds[0].steps]
    for width in dict.fromkeys(widths):
        alike = [
            _Ranked(tuple(s for s in fold.steps if s.tile["BV"] == width), fold.rejected)
            for fold in folds
        ]
        if all(fold.steps for fold in alike):
            folds = alike
            break
    if facts.algebra.global_sum:
        return [*passes, *folds]
    state, dstate, carry, dcarry = folds
    scan = {"BC": rows, "BE": 512}
    return [
        *passes,
        state,
        _fixed(request, scan_kernel(chunk), scan),
        dstate,
        _fixed(request, dscan_kernel(chunk), scan),
        carry,
        dcarry,
    ]
