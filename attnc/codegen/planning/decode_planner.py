"""Algebra -> Plan of a decode step: which variants have one, and by which form."""

from __future__ import annotations

from itertools import product
from math import ceil

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import Features, features_of, power_of_two
from attnc.codegen.kernels.combine import combine_kernel
from attnc.codegen.kernels.decode import decode_kernel
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import pass_plan, refuse, state_too_large, tile_dims
from attnc.codegen.planning.ring import folded_ring_size
from attnc.codegen.planning.visibility import visible_fraction, walked_terms
from attnc.dsl.mask import union_of
from attnc.errors import PlanError

# programs a multiprocessor that are asked for, and that its SRAM should hold at once
_PROGRAMS = 4
_RESIDENT = 3
# fewer keys a split than this and combining costs what splitting saves
_LEAST_KEYS = 128
_MOST_SPLITS = 128
# channels of k and v a step of the loop
_TILE_WORDS = 8192


def decode_form(request: Request, algebra: Algebra) -> tuple[str, str]:
    """The form of a decode step and why it is that one.

    Raises:
        PlanError: the variant has no decode, and why.
    """
    name = request.variant.name
    if algebra.over_cache:
        if not algebra.within_causal:
            raise PlanError(
                f"{name!r} has no decode",
                notes=(
                    "its mask shows a query keys that come after it, and a step knows none of them",
                ),
                hints=("and the mask with causal, or call the op on the whole sequence",),
            )
        if algebra.mask.blocks:
            raise PlanError(
                f"{name!r} has no decode",
                notes=("its mask keeps blocks by a table, which no step walks yet",),
                hints=("call the op with one query and all keys: TQ = 1 ends at the last key",),
            )
        if algebra.value is not None:
            raise PlanError(
                f"{name!r} has no decode",
                notes=("its value is an expression, and a cache keeps v as it comes",),
                hints=("declare no value, and hand the step what it says",),
            )
        if any("h" in bound for bound in algebra.mask.bounds):
            raise PlanError(
                f"{name!r} has no decode",
                notes=("its mask is bounded by a number a query head, and heads share a walk",),
                hints=("bound the mask by a number, or by one a batch entry",),
            )
        if request.cache == "folded":
            why = no_state(request, algebra)
            if why:
                raise PlanError(
                    f"{name!r} has no state beside its cache",
                    notes=(why,),
                    hints=("a cache with a capacity keeps every key",),
                )
            assert algebra.folded is not None, "a state holds a term"
            term = algebra.folded + 1
            return "online", f"a state holds term {term}, one row goes over the ring of the others"
        form = "online" if algebra.has_lse else "parallel"
        return form, "one row over the keys of a cache, cut into splits"
    recurrent = algebra.legal("recurrent")
    if not recurrent.legal:
        raise PlanError(
            f"{name!r} has no decode",
            notes=(recurrent.reason,),
            hints=("use mask = causal, or call the op on the whole sequence",),
        )
    return "recurrent", "one token folds into the state, which is all that a step reads"


def no_state(request: Request, algebra: Algebra) -> str:
    """Why a step has no state beside a ring, empty where it has."""
    size, why = folded_ring_size(request.variant, algebra)
    return why if size is None else state_too_large(request, step_features(request, algebra))


def step_features(request: Request, algebra: Algebra) -> Features:
    """The features of the folded term, in tiles that a program takes one after the other."""
    return features_of(algebra.state, request.dims[0], widest=64)


Found = list[tuple[tuple[PassPlan, ...], tuple[int, ...]]]


def decode_passes(
    request: Request, algebra: Algebra, printer: Printer
) -> tuple[Found, tuple[Rejected, ...]]:
    """The legal candidates of a step over a cache, each with what orders them, and the rejected."""
    splits = split_count(request)
    kernel = decode_kernel(
        request.variant, algebra, request.dims, printer, cache=request.cache or "contiguous",
        split=splits > 1, min_columns=request.device.min_columns,
        features=step_features(request, algebra) if request.cache == "folded" else None,
    )  # fmt: skip
    tile_k, tile_v = tile_dims(request)
    heads = max(16, power_of_two(request.workload.hq // request.workload.hkv))
    after: tuple[PassPlan, ...] = ()
    if splits > 1:
        tiles = {"BN": splits, "BV": tile_v}
        after = (pass_plan(request, combine_kernel(algebra), tiles, 4, 1),)
    found: Found = []
    rejected: list[Rejected] = []
    for keys, warps, stages in product((64, 128, 32), (4, 8, 2), (3, 2, 4, 1)):
        tiles = {"BT": heads, "BS": keys, "BK": tile_k, "BV": tile_v}
        step = pass_plan(request, kernel, tiles, warps, stages)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
            continue
        found.append(((step, *after), _order(request, step, keys * (tile_k + tile_v))))
    return found, tuple(rejected)


def _order(request: Request, step: PassPlan, words: int) -> tuple[int, ...]:
    """Programs enough on a multiprocessor to keep its loads in flight, then the larger tiles."""
    resident = request.device.sram_bytes // max(1, step.cost.sram_bytes)
    idle = max(0, _RESIDENT - resident)
    # tiles of a state are loaded ahead of each other: four warps have no registers for that
    warps = 8 if request.cache == "folded" else 4
    return (idle, abs(words - _TILE_WORDS), abs(step.num_warps - warps), -step.num_stages)


def split_count(request: Request) -> int:
    """Into how many splits a sequence's keys are cut: a power of two, 1 where heads fill it all."""
    work = request.workload
    mask = union_of(term.mask_form for term in walked_terms(request))
    keys = visible_fraction(mask, 1, work.tk) * work.tk
    wanted = ceil(request.device.sms * _PROGRAMS / (work.batch * work.hkv))
    most = max(1, min(_MOST_SPLITS, int(keys) // _LEAST_KEYS))
    return 1 << (min(wanted, most).bit_length() - 1)
