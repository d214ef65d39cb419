"""Algebra -> Plan of a decode step: which variants have one, and by which form."""

from __future__ import annotations

from itertools import product
from math import ceil

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.features import power_of_two
from attnc.codegen.kernels.decode import combine_kernel, decode_kernel
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import pass_plan, refuse, tile_dims
from attnc.codegen.planning.work import visible_fraction
from attnc.codegen.symbolic import symbol
from attnc.codegen.text.printer import Printer
from attnc.dsl.variant import Declared, Variant
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
    if algebra.has_lse:
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
        return "online", "one row over the keys of a cache, cut into splits"
    recurrent = algebra.legal("recurrent")
    if not recurrent.legal:
        raise PlanError(
            f"{name!r} has no decode",
            notes=(recurrent.reason,),
            hints=("use mask = causal, or call the op on the whole sequence",),
        )
    return "recurrent", "one token folds into the state, which is all that a step reads"


Found = list[tuple[tuple[PassPlan, ...], tuple[int, ...]]]


def decode_passes(
    request: Request, algebra: Algebra, printer: Printer
) -> tuple[Found, tuple[Rejected, ...]]:
    """The legal candidates of a step over a cache, each with what orders them, and the rejected."""
    splits = split_count(request)
    kernel = decode_kernel(
        request.variant, algebra, request.dims, printer, cache=request.cache or "contiguous",
        split=splits > 1, min_columns=request.device.min_columns,
    )  # fmt: skip
    tile_k, tile_v = tile_dims(request)
    heads = max(16, power_of_two(request.workload.hq // request.workload.hkv))
    after: tuple[PassPlan, ...] = ()
    if splits > 1:
        tiles = {"BN": splits, "BV": tile_v}
        after = (pass_plan(request, combine_kernel(), tiles, 4, 1),)
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
    return (idle, abs(words - _TILE_WORDS), abs(step.num_warps - 4), -step.num_stages)


def split_count(request: Request) -> int:
    """Into how many splits a sequence's keys are cut: a power of two, 1 where heads fill it all."""
    work = request.workload
    keys = visible_fraction(request.variant.mask_form, 1, work.tk) * work.tk
    wanted = ceil(request.device.sms * _PROGRAMS / (work.batch * work.hkv))
    most = max(1, min(_MOST_SPLITS, int(keys) // _LEAST_KEYS))
    return 1 << (min(wanted, most).bit_length() - 1)


def ring_size(variant: Variant, algebra: Algebra) -> tuple[int | None, str]:
    """How many keys a ring buffer needs, the new one among them; None and why where none does.

    A ring forgets positions, so the mask and the score must not depend on where the window stands.
    """
    sizes = []
    for clause in algebra.mask.clauses:
        if algebra.mask.tensors or any(plane.i != -plane.j for plane in clause):
            return None, "its mask depends on more than the distance of query and key"
        bounds = [plane.c // plane.j + 1 for plane in clause if plane.j > 0]
        if not bounds:
            return None, "its mask is no window: a row sees all keys before it"
        sizes.append(min(bounds))
    used = variant.used
    if any({"i", "j", "t"} & set(t.shape) for t in _declared(variant) if t.name in used):
        return None, "a declared tensor has a value a token, which a ring does not keep"
    shift, at = symbol("shift"), {name: symbol(name) for name in ("i", "j")}
    for part in algebra.terms or (algebra,):
        if part.score is None:
            continue  # a polynomial of s knows no position
        moved = part.score.subs({s: s + shift for s in at.values()}, simultaneous=True)
        if sympy.expand(moved - part.score) != 0:
            return None, "its score depends on more than the distance of query and key"
    return max(1, *sizes), ""


def _declared(variant: Variant) -> tuple[Declared, ...]:
    return (*variant.params, *variant.inputs)
