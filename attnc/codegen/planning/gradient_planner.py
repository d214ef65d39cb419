"""Algebra -> Plan of a backward: each pass has candidates of its own, and they do not interact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attnc.codegen.algebra import Algebra
from attnc.codegen.derive import Derivation, derive
from attnc.codegen.features import Features
from attnc.codegen.kernels.block_lists import list_kernel, listed_at_once
from attnc.codegen.kernels.gradient.channel_gate_sums import dchannel_gates_kernel
from attnc.codegen.kernels.gradient.columns import columns_kernel
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.gate_sums import dgates_kernel
from attnc.codegen.kernels.gradient.rows import rows_kernel
from attnc.codegen.plan import PassPlan, Plan, Request
from attnc.codegen.planning.candidate import printer_for, state_too_large
from attnc.codegen.planning.channel_passes import CHANNEL_TOKENS, gates_pass
from attnc.codegen.planning.chunk_gradient_planner import chunk_ways
from attnc.codegen.planning.chunk_planner import gradient_features
from attnc.codegen.planning.pair_candidates import pair_tiles
from attnc.codegen.planning.ranked_passes import (
    RankedPass,
    fixed_pass,
    least_channels,
    rank_pass,
    whole_heads,
)
from attnc.codegen.planning.sum_gradient_planner import sum_ways
from attnc.codegen.tile_lists import tile_lists
from attnc.errors import PlanError


@dataclass(frozen=True, slots=True)
class Made:
    """What the plans of a backward share beside their passes."""

    form: str
    reason: str
    features: Features | None
    derivation: Derivation
    helpers: tuple[str, ...]
    backend: str = "triton"
    any_order: bool = False
    order_reason: str = ""


def gradient_plans(request: Request, algebra: Algebra, form: str, reason: str) -> tuple[Plan, ...]:
    """Every plan of a backward, way by way: plan n takes each pass's n-th candidate, or its last.

    Raises:
        PlanError: no tile of some pass fits the budget.
    """
    derivation = derive(request.variant, algebra, request.wanted)
    printer = printer_for(request)
    facts = GradientFacts(
        request.variant, algebra, derivation, request.dims, printer, least_channels(request)
    )
    features: Features | None = None
    ways: list[list[RankedPass]] = []
    if form == "chunked":
        features = gradient_features(request, algebra)
        too_large = state_too_large(request, features)
        find = sum_ways if algebra.terms else chunk_ways
        ways = [] if too_large else find(request, facts, features)
        if not ways or not _fits(ways[0]):
            why = too_large or _last_reason(ways[0] if ways else [])
            # a sum's pairs go on from the lse of either form: there is no need to refuse
            if not algebra.terms and (request.stateful or request.form is not None):
                raise _no_fit(request, why)
            form = "online" if algebra.terms else "parallel"
            reason = f"no tile of the chunked backward fits: {why}"
            features = None
    if form != "chunked":
        ways = [_pair_passes(request, facts)]
        if not _fits(ways[0]):
            raise _no_fit(request, _last_reason(ways[0]))
    made = Made(form, reason, features, derivation, tuple(sorted(printer.helpers)))
    return plans_of(request, algebra, ways, made)


def plans_of(
    request: Request, algebra: Algebra, ways: Sequence[Sequence[RankedPass]], made: Made
) -> tuple[Plan, ...]:
    """The plans of ranked passes: plan n of a way takes each pass's n-th candidate, or its last."""
    rejected = tuple(
        dict.fromkeys(item for way in ways for ranked in way for item in ranked.rejected)
    )
    return tuple(
        Plan(
            variant=request.variant,
            algebra=algebra,
            features=made.features,
            device=request.device,
            dims=request.dims,
            dtype=request.dtype,
            form=made.form,
            form_reason=made.reason,
            stateful=request.stateful,
            precision=request.precision,
            workload=request.workload,
            passes=steps,
            helpers=made.helpers,
            programs=request.device.sms * 2,
            min_chunks=4,
            rejected=rejected,
            derivation=made.derivation,
            backend=made.backend,
            any_order=made.any_order,
            order_reason=made.order_reason,
        )
        for way in ways
        for steps in _nth_candidates(way)
    )


def _nth_candidates(way: Sequence[RankedPass]) -> Iterator[tuple[PassPlan, ...]]:
    for n in range(max(len(ranked.steps) for ranked in way)):
        yield tuple(ranked.steps[min(n, len(ranked.steps) - 1)] for ranked in way)


def _fits(way: Sequence[RankedPass]) -> bool:
    return all(ranked.steps for ranked in way)


def _last_reason(passes: Sequence[RankedPass]) -> str:
    return next(
        (ranked.rejected[-1].reason for ranked in passes if not ranked.steps and ranked.rejected),
        "no chunk size is legal",
    )


def _no_fit(request: Request, why: str) -> PlanError:
    head_dim, value_dim = request.dims
    sram = f"{request.device.sram_bytes:,} B of SRAM"
    return PlanError(
        f"no tile of the backward of {request.variant.name!r} at K={head_dim}, V={value_dim}, "
        f"{request.dtype} fits {'the registers of a program' if 'registers' in why else sram}",
        notes=(why,),
        hints=("raise the budget, use a smaller head dim, or a 16-bit dtype",),
    )


def _pair_passes(request: Request, facts: GradientFacts) -> list[RankedPass]:
    gated = facts.algebra.decay in {"gated", "channel"}
    passes: list[RankedPass] = []
    if gated:
        passes.append(RankedPass((gates_pass(request, facts.algebra, facts.printer),), ()))
    sides = [tile_lists(facts.algebra.mask, of_rows=of_rows) for of_rows in (True, False)]
    for lists in sides:
        if lists is not None:
            listing = list_kernel(request.variant, facts.algebra, lists)
            tiles = {"BN": listed_at_once(facts.algebra.mask, lists)}
            passes.append(fixed_pass(request, listing, tiles))
    for kernel, lists in zip((rows_kernel(facts), columns_kernel(facts)), sides, strict=True):
        found = pair_tiles(request, kernel.name, lists, by_channel=facts.algebra.by_channel)
        passes.append(rank_pass(request, kernel, found))
    if facts.algebra.by_channel and facts.derivation.decay:
        sizes = {"BC": CHANNEL_TOKENS, "BK": whole_heads(request)[0]}
        passes.append(fixed_pass(request, dchannel_gates_kernel(facts), sizes))
    elif gated and facts.derivation.decay:
        passes.append(fixed_pass(request, dgates_kernel(facts), {"BC": 1024}))
    return passes
