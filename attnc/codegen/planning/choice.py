"""A plan's tiles as text that outlives it: what tuning stores, and how it finds its plan again.

The key of a kernel says what it computes and not how, so it survives every edit of the templates;
a choice names the tiles of each pass, so one that no plan has any more is seen to be stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.codegen.convolution.work import taps_of
from attnc.codegen.plan import Plan

Choice = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shapes that share a choice: T and B * H, each up to the next power of two."""

    tokens: int
    heads: int

    @classmethod
    def of(cls, batch: int, heads: int, tq: int, tk: int) -> Bucket:
        """The bucket of a call."""
        return cls(_above(max(tq, tk)), _above(batch * heads))

    def distance(self, other: Bucket) -> tuple[int, int]:
        """How far another bucket is, in doublings: of T first, then of B * H."""
        tokens = abs(self.tokens.bit_length() - other.tokens.bit_length())
        return tokens, abs(self.heads.bit_length() - other.heads.bit_length())

    def __str__(self) -> str:
        return f"T<={self.tokens} B*H<={self.heads}"


def _above(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def kernel_key(plan: Plan) -> str:
    """Names what the kernels of a plan compute: the variant's meaning, phase, form, dims, dtype.

    A convolution's forms are rivals, of which lengths decide: its key has those and no form.
    """
    filtered = plan.algebra.family == "conv"
    facts: dict[str, object] = {
        "variant": plan.variant.digest,
        "phase": plan.phase,
        "form": "" if filtered else plan.form,
        "stateful": plan.stateful,
        "precision": plan.precision if plan.dtype == "fp32" else "",
        "dims": plan.dims,
        "dtype": plan.dtype,
        "gradients": []
        if plan.derivation is None
        else [partial.label for partial in plan.derivation.partials],
    }
    if plan.backend != "triton":
        facts["backend"] = plan.backend
    if plan.any_order:
        facts["any_order"] = True
    if filtered:
        work = plan.workload
        facts["lengths"] = [_above(work.tk), _above(taps_of(plan)), *(work.factors or ())]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def choice_of(plan: Plan) -> Choice:
    """The tiles of every pass, one line each."""
    return tuple(str(step) for step in plan.passes)


def chosen(ranked: Sequence[Plan], choice: Choice) -> Plan | None:
    """The plan of a choice, from passes of any of the ranked plans; None where one is not there."""
    names = tuple(line.partition(":")[0] for line in choice)
    alike = [plan for plan in ranked if way_of(plan)[0] == names]
    if not alike:
        return None
    passes = []
    for place, wanted in enumerate(choice):
        step = next((p.passes[place] for p in alike if str(p.passes[place]) == wanted), None)
        if step is None:
            return None
        passes.append(step)
    return replace(alike[0], passes=tuple(passes))


def goes_whole(plan: Plan) -> bool:
    """Whether the passes of a plan share tiles, so that none of them mixes with another plan's.

    Those of a forward do, and those of one transform, which have its factors in common.
    """
    return plan.phase == "forward" or any("N1" in step.tile for step in plan.passes)


def way_of(plan: Plan) -> tuple[tuple[str, ...], int]:
    """The names of a plan's passes, and the chunk they share: rivals of one way mix freely."""
    names = tuple(step.kernel.name for step in plan.passes)
    return names, plan.passes[-1].tile.get("BC", 0)
