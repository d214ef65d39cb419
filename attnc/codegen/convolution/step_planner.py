"""Request -> the plan of one token of a convolution."""

from __future__ import annotations

from attnc.codegen.convolution.algebra import STEP_FORM, FilterAlgebra
from attnc.codegen.convolution.step import step_kernel
from attnc.codegen.convolution.work import taps_of
from attnc.codegen.plan import DTYPES, PassPlan, Plan, Request
from attnc.codegen.planning.cost import estimate
from attnc.dsl.convolution import Convolution
from attnc.errors import PlanError

_MOST_ROWS, _TAPS = 16, 256


def step_plan(request: Request, algebra: FilterAlgebra) -> Plan:
    """One program a channel and up to 16 sequences, whose taps are loaded once.

    Raises:
        PlanError: the filter reads tokens that come later, or an unknown number of them.
    """
    variant = request.variant
    assert isinstance(variant, Convolution)
    check_decodes(variant)
    work = request.workload
    rows = min(_MOST_ROWS, 1 << max(0, work.batch - 1).bit_length())
    tiles = {"BB": rows, "BD": _TAPS}
    kernel = step_kernel(variant.filter)
    taps, item = taps_of(request), DTYPES[request.dtype]
    kept = work.batch * work.hq * taps
    nbytes = kept * item + work.hq * taps * 4 * -(-work.batch // rows)
    cost = estimate(
        kernel, tiles, io=request.dtype, num_warps=4, num_stages=1, device=request.device,
        work=(float(nbytes), 2.0 * kept), precision=request.precision,
    )  # fmt: skip
    return Plan(
        variant=variant,
        algebra=algebra,
        features=None,
        device=request.device,
        dims=request.dims,
        dtype=request.dtype,
        form=STEP_FORM,
        form_reason="one token reads every input that a tap weighs, once",
        stateful=False,
        precision=request.precision,
        workload=work,
        passes=(PassPlan(kernel, tuple(tiles.items()), 4, 1, cost),),
        helpers=(),
        programs=request.device.sms * 4,
        min_chunks=1,
        decode=True,
    )


def check_decodes(variant: Convolution) -> None:
    """Refuse a filter that token by token cannot be.

    Raises:
        PlanError: its mask shows offsets below 0.
    """
    if variant.filter.learned:
        raise PlanError(
            f"{variant.name!r} has no decode",
            notes=("its learned factors mix all tokens of a block",),
            hints=("leave outer and inner out: filters of the past go token by token",),
        )
    lowest = variant.filter.lowest
    if lowest is None or lowest < 0:
        raise PlanError(
            f"{variant.name!r} has no decode",
            notes=("its filter weighs tokens that come later",),
            hints=('mask = "causal" weighs the token and those before it',),
        )
