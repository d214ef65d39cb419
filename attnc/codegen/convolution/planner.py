"""Convolution -> Plan: candidates of each pass, and the reason against each rejected one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from attnc.codegen.candidate import refuse
from attnc.codegen.convolution.algebra import (
    TOEPLITZ,
    FilterAlgebra,
    analyse_convolution,
    derive_convolution,
)
from attnc.codegen.convolution.taps import dtaps_kernel
from attnc.codegen.convolution.toeplitz import dgate_kernel, dvalue_kernel, forward_kernel
from attnc.codegen.convolution.work import filter_work, taps_of
from attnc.codegen.cost import estimate
from attnc.codegen.derive import Derivation
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Plan, Rejected, Request
from attnc.dsl.convolution import Convolution
from attnc.errors import PlanError

Tiles = tuple[dict[str, int], int, int]


def convolution_plans(request: Request) -> tuple[Plan, ...]:
    """Every legal plan, the fastest by prediction first: plan n takes each pass's n-th candidate.

    Raises:
        PlanError: no tile fits the budget, or the form asked for is not legal.
    """
    variant = request.variant
    assert isinstance(variant, Convolution)
    algebra = analyse_convolution(variant)
    form, reason = _choose_form(request, algebra)
    derivation: Derivation | None = None
    if request.phase == "backward":
        derivation = derive_convolution(variant, algebra, request.wanted)
    kernels = _kernels(variant, derivation)
    passes = [_ranked(request, kernel) for kernel in kernels]
    for kernel, (steps, rejected) in zip(kernels, passes, strict=True):
        if not steps:
            raise PlanError(
                f"no tile of {kernel.name} of {variant.name!r} fits "
                f"{request.device.sram_bytes:,} B of SRAM in {request.dtype}",
                notes=(rejected[-1].reason,),
                hints=("raise the budget, or use a 16-bit dtype",),
            )
    unfit = tuple(item for _, refused in passes for item in refused)
    return tuple(
        Plan(
            variant=variant,
            algebra=algebra,
            features=None,
            device=request.device,
            dims=request.dims,
            dtype=request.dtype,
            form=form,
            form_reason=reason,
            stateful=False,
            precision=request.precision,
            workload=request.workload,
            passes=tuple(steps[min(n, len(steps) - 1)] for steps, _ in passes),
            helpers=(),
            programs=request.device.sms * 4,
            min_chunks=1,
            rejected=unfit,
            derivation=derivation,
        )
        for n in range(max(len(steps) for steps, _ in passes))
    )


def _choose_form(request: Request, algebra: FilterAlgebra) -> tuple[str, str]:
    if request.backend not in {None, "triton"}:
        raise PlanError(
            f"the {request.backend} backend cannot take {request.variant.name!r}",
            notes=("a convolution has triton's kernels alone",),
            hints=("leave the backend out",),
        )
    if request.decode or request.stateful:
        raise PlanError(
            f"{request.variant.name!r} keeps no state",
            notes=("a filter reads the tokens themselves, and no step form has kernels",),
            hints=("call it on the last tokens, as many as it has taps",),
        )
    if request.form is None or request.form == TOEPLITZ:
        asked = "asked for" if request.form else algebra.legal(TOEPLITZ).reason
        return TOEPLITZ, asked
    raise PlanError(
        f"{request.variant.name!r} has no {request.form} form",
        hints=(f"its forms are: {', '.join(verdict.form for verdict in algebra.forms)}",),
    )


def _kernels(variant: Convolution, derivation: Derivation | None) -> list[Kernel]:
    found = variant.filter
    if derivation is None:
        return [forward_kernel(found)]
    wanted = {partial.declared.name for partial in derivation.partials}
    fields = {field for field, ref in found.refs if ref.name in wanted}
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
