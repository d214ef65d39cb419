"""Algebra -> Plan: candidates for a budget, the reason against each rejected one, the rest ranked.

A formula proposes and the compiler decides: `plans` returns every legal plan in order of predicted
time, and whoever compiles takes the first that the compiler says fits.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra, analyse
from attnc.codegen.convolution.planner import convolution_plans
from attnc.codegen.convolution.predicted import step_us
from attnc.codegen.dtype import check_dtype
from attnc.codegen.features import Features
from attnc.codegen.gluon.gradient_planner import gluon_gradient_plans
from attnc.codegen.gluon.planner import gluon_plans, gluon_steps
from attnc.codegen.plan import PassPlan, Plan, Rejected, Request
from attnc.codegen.planning.any_order import with_order_told
from attnc.codegen.planning.backend import Backend, choose_backend, portable
from attnc.codegen.planning.candidate import (
    no_state_fits,
    pass_plan,
    printer_for,
    tile_dims,
)
from attnc.codegen.planning.channel_passes import gates_pass
from attnc.codegen.planning.chunk_planner import (
    chunk_features,
    chunk_passes,
    chunk_tiles,
    pass_kernels,
)
from attnc.codegen.planning.decode_planner import decode_passes, step_features
from attnc.codegen.planning.form_choice import choose_form
from attnc.codegen.planning.gradient_planner import gradient_plans
from attnc.codegen.planning.pair_planner import listing_pass, pair_kernel, pair_passes
from attnc.codegen.planning.rank import rank_us, why_behind
from attnc.codegen.planning.recurrent_planner import recurrent_features, recurrent_passes
from attnc.errors import PlanError


def plan(request: Request) -> Plan:
    """The first-ranked plan.

    Raises:
        PlanError: no tile fits the budget, or the form asked for is not legal.
    """
    return plans(request)[0]


def plans(
    request: Request, backend: Backend | None = None, form: tuple[str, str] | None = None
) -> tuple[Plan, ...]:
    """Every legal plan, the fastest by prediction first; each knows all that was rejected.

    `backend` and `form`, with why it is that one, are those that were chosen for another workload
    than the one that tiles are ranked for.

    Raises:
        PlanError: no tile fits the budget, or the form asked for is not legal.
    """
    request = replace(request, precision=request.device.dots(request.precision))
    return with_order_told(_legal_plans(request, backend, form), request)


def _legal_plans(
    request: Request, backend: Backend | None, form: tuple[str, str] | None
) -> tuple[Plan, ...]:
    check_dtype(request)
    if request.variant.family == "conv":
        return convolution_plans(request)
    algebra = analyse(request.variant)
    form = form or choose_form(request, algebra)
    backend = backend or choose_backend(request, algebra)
    if backend.name == "gluon":
        ranked, rejected = _gluon_plans(request, algebra, form)
        if ranked:
            # who asks for a backend wants no other
            behind = () if backend.asked else _otherwise(request, algebra, *form)
            return tuple(
                replace(item, backend_reason=backend.reason, otherwise=behind) for item in ranked
            )
        if backend.asked:
            raise _no_fit(request, rejected)
        backend = portable("none of its tiles fits the budget")
    return tuple(
        replace(item, backend_reason=backend.reason)
        for item in _triton_plans(request, algebra, *form)
    )


def predicted_us(plan: Plan, request: Request) -> float:
    """Microseconds that the passes of a plan are predicted to take: what plans are ranked by."""
    predict = step_us if request.variant.family == "conv" else rank_us
    return sum(predict(step, request) for step in plan.passes)


def _gluon_plans(
    request: Request, algebra: Algebra, form: tuple[str, str]
) -> tuple[tuple[Plan, ...], tuple[Rejected, ...]]:
    if request.phase == "backward":
        return gluon_gradient_plans(request, algebra, form)
    printer = printer_for(request)
    found = gluon_steps(request, algebra, pair_kernel(request, algebra, printer))
    helpers = tuple(sorted(printer.helpers))
    before = listing_pass(request, algebra)
    return gluon_plans(request, algebra, found, helpers, form, before), found.rejected


def _otherwise(request: Request, algebra: Algebra, form: str, reason: str) -> tuple[Plan, ...]:
    """The plans of calls whose tensors have no descriptors."""
    why = "where the copy engine cannot read q, k or v as they lie"
    ranked = _triton_plans(request, algebra, form, reason)
    return tuple(replace(item, backend_reason=why) for item in ranked)


def _triton_plans(request: Request, algebra: Algebra, form: str, reason: str) -> tuple[Plan, ...]:
    if request.phase == "backward":
        if form == "recurrent":
            # a fold back token by token would need every state: chunks keep one a chunk
            request = replace(request, form="chunked" if request.stateful else None)
            form, reason = "chunked", "the recurrent form takes the gradients of the chunked one"
        return gradient_plans(request, algebra, form, reason)
    if form == "chunked":
        found, rejected = chunk_passes(request, algebra)
        if not found and request.form is None and not request.stateful:
            why = rejected[-1].reason if rejected else "no chunk size is legal"
            form = "online" if algebra.has_lse else "parallel"
            reason = f"the state is too large for any tile: {why}"
    if request.decode and form != "recurrent":
        found, rejected = decode_passes(request, algebra, printer_for(request))
    elif form == "recurrent":
        found, rejected = recurrent_passes(request, algebra, printer_for(request))
    elif form != "chunked":
        found, rejected = pair_passes(request, algebra)
    if not found:
        raise _no_fit(request, rejected)
    found.sort(key=lambda steps: (sum(rank_us(step, request) for step in steps[0]), steps[1]))
    printer_helpers = _helpers(request, algebra, form)
    features = _features(request, algebra, form)
    ranked = []
    for steps, _ in found:
        ranked.append(
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
                helpers=printer_helpers,
                programs=request.device.sms * 2,
                min_chunks=4,
                decode=request.decode,
                cache=request.cache,
                out=request.result,
            )
        )
    slower = tuple(
        Rejected("; ".join(str(step) for step in item.passes), why_behind(item, ranked[0], request))
        for item in ranked[1:]
    )
    return tuple(replace(item, rejected=(*rejected, *slower)) for item in ranked)


def _features(request: Request, algebra: Algebra, form: str) -> Features | None:
    """The features of a state, as the form takes them; None where nothing is in one."""
    if request.cache == "folded":
        return step_features(request, algebra)
    if form in {"chunked", "recurrent"}:
        return (chunk_features if form == "chunked" else recurrent_features)(request, algebra)
    return None


def _helpers(request: Request, algebra: Algebra, form: str) -> tuple[str, ...]:
    printer = printer_for(request)
    if algebra.family == "softmax":
        pair_kernel(request, algebra, printer)
    else:
        if form == "chunked":
            features = chunk_features(request, algebra)
            pass_kernels(request, algebra, features, printer)
        pair_kernel(request, algebra, printer)
        if algebra.decay in {"gated", "channel"}:
            gates_pass(request, algebra, printer)
    return tuple(sorted(printer.helpers))


def _no_fit(request: Request, rejected: tuple[Rejected, ...]) -> PlanError:
    name = request.variant.name
    head_dim, value_dim = request.dims
    algebra = analyse(request.variant)
    if rejected and rejected[-1].candidate in {"any chunk", "any columns"}:
        free = "online" if algebra.has_lse else "parallel"
        return no_state_fits(request, rejected[-1].reason, free)
    smallest = _smallest_pass(request, algebra)
    if rejected and smallest.cost.sram_bytes <= request.device.sram_bytes:
        chunked = "the parallel form keeps no state; or use a smaller K or a lower order"
        keeps = algebra.family == "state" and algebra.legal("chunked").legal
        return PlanError(
            f"no tile of {name!r} at K={head_dim}, V={value_dim}, {request.dtype} fits the "
            "registers of a program",
            notes=(f"the last of {len(rejected)} candidates {rejected[-1].reason}",),
            hints=(chunked if keeps else "use a smaller head dim, or a 16-bit dtype",),
        )
    largest = max(smallest.cost.buffers, key=lambda use: use.nbytes * use.copies)
    budget = request.device.sram_bytes
    shape = ", ".join(str(side) for side in largest.shape)
    return PlanError(
        f"no tile of {name!r} at K={head_dim}, V={value_dim}, {request.dtype} fits "
        f"{budget:,} B of SRAM: the smallest needs {smallest.cost.sram_bytes:,} B",
        notes=(
            f"the largest buffer of that candidate is {largest.name} [{shape}] {largest.dtype}, "
            f"{largest.nbytes * largest.copies:,} B",
            f"{len(rejected)} candidates were rejected",
        ),
        hints=("raise the budget, use a smaller head dim, or a 16-bit dtype",),
    )


def _smallest_pass(request: Request, algebra: Algebra) -> PassPlan:
    tile_k, tile_v = tile_dims(request)
    by_pairs = algebra.has_lse and request.form != "chunked"
    if by_pairs or not algebra.legal("chunked").legal:
        kernel = pair_kernel(request, algebra, printer_for(request))
        return pass_plan(request, kernel, {"BT": 16, "BS": 32, "BK": tile_k, "BV": tile_v}, 4, 1)
    features = chunk_features(request, algebra)
    kernels = pass_kernels(request, algebra, features, printer_for(request))
    tiles = {"BK": tile_k, "BV": request.device.min_columns, **chunk_tiles(algebra, 16)}
    return pass_plan(request, kernels[-1], tiles, 4, 1)
