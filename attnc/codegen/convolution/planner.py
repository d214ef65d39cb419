"""Convolution -> Plan: candidates of each pass, and the reason against each rejected one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from attnc.codegen.convolution.algebra import (
    BUTTERFLY,
    FFT,
    THREE_PASS,
    TOEPLITZ,
    FilterAlgebra,
    analyse_convolution,
    derive_convolution,
)
from attnc.codegen.convolution.butterfly_planner import butterfly_passes
from attnc.codegen.convolution.fft_planner import transform_passes
from attnc.codegen.convolution.fft_work import error_of, pieces_of
from attnc.codegen.convolution.predicted import form_us
from attnc.codegen.convolution.step_planner import step_plan
from attnc.codegen.convolution.taps import dtaps_kernel
from attnc.codegen.convolution.three_pass_planner import three_passes
from attnc.codegen.convolution.toeplitz import dgate_kernel, dvalue_kernel, forward_kernel
from attnc.codegen.convolution.work import filter_work, taps_of
from attnc.codegen.derive import Derivation
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Plan, Rejected, Request
from attnc.codegen.planning.candidate import refuse
from attnc.codegen.planning.cost import estimate
from attnc.dsl.convolution import Convolution
from attnc.errors import PlanError

Tiles = tuple[dict[str, int], int, int]
_Passes = tuple[list[tuple[PassPlan, ...]], list[Rejected]]
_Found = dict[str, _Passes]
_Form = Callable[[Request, "frozenset[str] | None"], _Passes]


def convolution_plans(request: Request) -> tuple[Plan, ...]:
    """Every legal plan, those of the form that is predicted to be the fastest first.

    Raises:
        PlanError: no tile fits the budget, or the form asked for is not legal.
    """
    variant = request.variant
    assert isinstance(variant, Convolution)
    algebra = analyse_convolution(variant)
    if request.decode:
        return (step_plan(request, algebra),)
    forms = _forms(request, algebra)
    derivation: Derivation | None = None
    fields: frozenset[str] | None = None
    if request.phase == "backward":
        derivation = derive_convolution(variant, algebra, request.wanted)
        wanted = {partial.declared.name for partial in derivation.partials}
        fields = frozenset(field for field, ref in variant.filter.refs if ref.name in wanted)
    found = {form: _PASSES[form](request, fields) for form in forms}
    best = {
        form: min(form_us(steps, request) for steps in passes)
        for form, (passes, _) in found.items()
        if passes
    }
    unfit = [item for _, rejected in found.values() for item in rejected]
    if not best:
        fewest = ("or factors of fewer points: op.init_factors(tokens) gives the fewest",)
        smaller = fewest if variant.filter.learned else ()
        what = "" if request.phase == "forward" else "the backward of "
        raise PlanError(
            f"no tile of {what}{variant.name!r} fits "
            f"{request.device.sram_bytes:,} B of SRAM in {request.dtype}",
            notes=(unfit[-1].reason,),
            hints=("raise the budget, or use a 16-bit dtype", *smaller),
        )
    ranked = {
        form: _in_order(request, form, found[form][0])
        for form in sorted(best, key=lambda item: best[item])
    }
    reasons = {
        form: _reason(request, form, steps[0], found, best) for form, steps in ranked.items()
    }
    return tuple(
        Plan(
            variant=variant,
            algebra=algebra,
            features=None,
            device=request.device,
            dims=request.dims,
            dtype=request.dtype,
            form=form,
            form_reason=reasons[form],
            stateful=False,
            precision=request.precision,
            workload=request.workload,
            passes=steps,
            helpers=(),
            programs=request.device.sms * 4,
            min_chunks=1,
            rejected=tuple(unfit),
            derivation=derivation,
        )
        for form, passes in ranked.items()
        for steps in passes
    )


def _in_order(
    request: Request, form: str, passes: Sequence[tuple[PassPlan, ...]]
) -> list[tuple[PassPlan, ...]]:
    """The fastest by prediction first; the passes of Toeplitz blocks are ranked one by one."""
    if form in {FFT, THREE_PASS}:
        return sorted(passes, key=lambda steps: form_us(steps, request))
    return list(passes)


def _forms(request: Request, algebra: FilterAlgebra) -> tuple[str, ...]:
    """The form asked for, or all of them."""
    if request.backend not in {None, "triton"}:
        raise PlanError(
            f"the {request.backend} backend cannot take {request.variant.name!r}",
            notes=("a convolution has triton's kernels alone",),
            hints=("leave the backend out",),
        )
    if request.stateful:
        raise PlanError(
            f"{request.variant.name!r} keeps no state from call to call",
            notes=("a filter reads the tokens themselves: its decode keeps a ring of them",),
            hints=("init_state, prefill and step go token by token",),
        )
    legal = tuple(verdict.form for verdict in algebra.forms if verdict.legal)
    if request.form is None:
        return legal
    if request.form in legal:
        return (request.form,)
    raise PlanError(
        f"{request.variant.name!r} has no {request.form} form",
        notes=tuple(v.reason for v in algebra.forms if v.form == request.form),
        hints=(f"its forms are: {', '.join(legal)}",),
    )


def _reason(
    request: Request, form: str, steps: tuple[PassPlan, ...], found: _Found, best: dict[str, float]
) -> str:
    """What decided, in figures: work, bytes and error of each form."""
    if request.form:
        said = "asked for"
    else:
        texts = []
        for name, (passes, _) in found.items():
            if not passes:
                texts.append(f"{name} fits no tile")
                continue
            first = min(passes, key=lambda item: form_us(item, request))
            flops = sum(step.cost.flops for step in first) / 1e9
            moved = sum(step.cost.hbm_bytes for step in first) / 1e6
            texts.append(f"{name} {best[name]:,.0f} us ({flops:,.1f} GFLOP, {moved:,.1f} MB)")
        said = f"by work and bytes, predicted: {', '.join(texts)}"
    if form == THREE_PASS:
        outer, inner = steps[0].tile, steps[1].tile
        said += (
            f"; N = {outer['NO']} x {inner['N1']} x {inner['N2']}, workspaces in {request.dtype}"
        )
    if form == BUTTERFLY:
        tile = steps[0].tile
        said += f"; N = {tile['N1']} x {tile['N2']} by declared factors, one block a sequence"
    if form == FFT:
        tile = steps[0].tile
        size = tile["NH"] * tile["N2"]
        count = len(pieces_of(request, size))
        pieces = "one block a sequence" if not steps[0].kernel.loops else (
            f"blocks of {size:,} tokens, {count} piece{'s' * (count > 1)} of the filter"
        )  # fmt: skip
        said += f"; N = {tile['N1']} x {tile['N2']}, {pieces}"
    errors = ", ".join(f"{dtype} {error_of(form, dtype):.1e}" for dtype in ("fp16", "bf16", "fp32"))
    return f"{said}; error of the output to expect: {errors} of its root mean square"


def _toeplitz_passes(
    request: Request, fields: frozenset[str] | None
) -> tuple[list[tuple[PassPlan, ...]], list[Rejected]]:
    """Plan n takes each pass's n-th candidate."""
    assert isinstance(request.variant, Convolution)
    passes = [_ranked(request, kernel) for kernel in _kernels(request.variant, fields)]
    rejected = [item for _, refused in passes for item in refused]
    if not all(steps for steps, _ in passes):
        return [], rejected
    count = max(len(steps) for steps, _ in passes)
    found = [tuple(steps[min(n, len(steps) - 1)] for steps, _ in passes) for n in range(count)]
    return found, rejected


def _kernels(variant: Convolution, fields: frozenset[str] | None) -> list[Kernel]:
    found = variant.filter
    if fields is None:
        return [forward_kernel(found)]
    kernels = [dvalue_kernel(found, gate_gradient="pregate" in fields)]
    if "postgate" in fields:
        kernels.append(dgate_kernel(found))
    if fields & {"weight", "skip"}:
        kernels.append(dtaps_kernel(found))
    return kernels


def _ranked(request: Request, kernel: Kernel) -> tuple[list[PassPlan], list[Rejected]]:
    found: list[PassPlan] = []
    rejected: list[Rejected] = []
    candidates = _taps_tiles if kernel.name == "dtaps" else _filter_tiles
    for tiles, warps, stages in candidates(request):
        step = _pass_plan(request, kernel, tiles, warps, stages)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
        else:
            found.append(step)
    found.sort(key=lambda step: _rank_us(step, request))
    return found, rejected


def _pass_plan(
    request: Request, kernel: Kernel, tiles: dict[str, int], warps: int, stages: int
) -> PassPlan:
    cost = estimate(
        kernel, tiles, io=request.dtype, num_warps=warps, num_stages=stages, device=request.device,
        work=filter_work(request, kernel, tiles), precision=request.precision,
    )  # fmt: skip
    return PassPlan(kernel, tuple(tiles.items()), warps, stages, cost)


def _filter_tiles(request: Request) -> Iterator[Tiles]:
    """BT tokens a row: 64 fill a product's columns; fp32 is split in three and holds less."""
    if request.dtype in {"fp32", "fp64"}:
        for rows, stages in product((32, 64), (1, 2)):
            yield {"BR": rows, "BT": 32}, 4, stages
        return
    # more than 16 rows a warp spill: a row keeps its place in the batch beside its tokens
    for rows, stages in product((128, 64), (2, 3)):
        yield {"BR": rows, "BT": 64}, rows // 16, stages


def _taps_tiles(request: Request) -> Iterator[Tiles]:
    """16 rows of u's Toeplitz matrix: its elements are gathered, so they should be few."""
    wide = request.dtype in {"fp32", "fp64"}
    columns = 16 if taps_of(request) <= 256 else 64
    for tokens, stages in product((64, 32), (2, 3, 1)):
        if wide and (tokens > 32 or stages > 1):
            continue
        yield {"BM": columns, "BE": 16, "BK": tokens}, 4, stages


def _rank_us(step: PassPlan, request: Request) -> float:
    """Few rows load a block of taps more often; too many leave multiprocessors without work."""
    tile, work = step.tile, request.workload
    if step.kernel.name == "dtaps":
        return step.cost.time_us * (1 + 16 / tile["BM"]) * (1 + 16 / tile["BK"])
    rows = work.batch * -(-work.tk // tile["BT"])
    programs = work.hq * -(-rows // tile["BR"])
    filled = rows / (-(-rows // tile["BR"]) * tile["BR"])
    idle = max(1.0, 2 * request.device.sms / programs)
    return step.cost.time_us / filled * (1 + 64 / tile["BR"]) * idle * (1 + 0.02 * step.num_stages)


_PASSES: dict[str, _Form] = {
    TOEPLITZ: _toeplitz_passes,
    FFT: transform_passes,
    THREE_PASS: three_passes,
    BUTTERFLY: butterfly_passes,
}
