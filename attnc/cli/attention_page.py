"""A page of the gallery of a variant of q, k and v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from attnc.cli.gallery_page import DEVICE, LENGTHS, TOKENS, Page, Work
from attnc.cli.gallery_snippet import snippet
from attnc.codegen.algebra import Algebra, analyse
from attnc.codegen.device import DEVICES
from attnc.codegen.features import features_of
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.decode_planner import decode_form, no_state
from attnc.codegen.planning.ring import folded_ring_size, ring_size
from attnc.codegen.planning.visibility import visible_fraction
from attnc.codegen.planning.work import pass_work
from attnc.codegen.text.formula import formula, recurrence
from attnc.dsl.sequences import over_sequences
from attnc.errors import InputError, PlanError

_HEADS, _DIM = 16, 64


@dataclass(frozen=True)
class AttentionPage(Page):
    """Plans at batch 1, at the declared heads and head dims."""

    @cached_property
    def algebra(self) -> Algebra:
        """What the declaration means."""
        return analyse(self.variant)

    @cached_property
    def request(self) -> Request:
        """The declared dims and heads, 64 channels and 16 heads where none are."""
        variant = self.variant
        dims = (_DIM, _DIM) if variant.dim is None else (variant.dim.qk, variant.dim.v)
        heads = (_HEADS, _HEADS)
        if variant.heads is not None:
            heads = (variant.heads.q, variant.heads.kv)
        work = Workload(1, TOKENS, TOKENS, *heads)
        return Request(variant, DEVICES[DEVICE], dims, heads=heads, workload=work)

    @property
    def introduction(self) -> str:
        """Row i of one head; a sum says how its brackets read."""
        if self.variant.terms:
            start = "A sum of terms; a bracket is 1 where its condition holds and else 0."
        else:
            start = f"The {self.variant.family} family."
        return f"{start} Row *i* of one head:"

    @property
    def formula(self) -> str:
        """The definition in LaTeX."""
        return formula(self.variant, self.algebra)

    @property
    def recurrence(self) -> str:
        """The fold over tokens in LaTeX, or nothing."""
        return recurrence(self.variant, self.algebra)

    @property
    def snippet(self) -> str:
        """A call that runs on a CPU."""
        return snippet(self.variant, self.loaded)

    @property
    def workload(self) -> str:
        """The shape that is planned for, on one line."""
        work, (qk, v) = self.request.workload, self.request.dims
        heads = f"H={work.hq}" if work.hq == work.hkv else f"Hq={work.hq} Hkv={work.hkv}"
        return f"B={work.batch} T={work.tq:,} {heads} K={qk} V={v}"

    @property
    def remark(self) -> str:
        """The share of pairs that positions leave; data hides more."""
        work, form = self.request.workload, self.variant.mask_form
        share = f"{visible_fraction(form, work.tq, work.tk):.1%} of the pairs are visible"
        if form.documents or form.blocks:
            return f"{share} by position; what data hides is not taken off"
        if form.tensors:
            return f"{share}, a bound of the mask taken to be half of the keys"
        return share

    def forms(self) -> Iterator[tuple[str, bool, str]]:
        """Each form, whether there is one, and why; then decode and packed sequences."""
        for verdict in self.algebra.forms:
            yield verdict.form, verdict.legal, verdict.reason
        yield ("decode", *self._decode())
        try:
            packed = analyse(over_sequences(self.variant))
        except InputError as error:
            yield "packed sequences", False, error.message.partition(": ")[2]
        else:
            *others, last = (verdict.form for verdict in packed.forms if verdict.legal)
            forms = f"{', '.join(others)} and {last} forms" if others else f"{last} form"
            yield "packed sequences", True, f"`cu_seqlens_q`, `cu_seqlens_k`, in the {forms}"

    def _decode(self) -> tuple[bool, str]:
        try:
            form, _ = decode_form(self.request, self.algebra)
        except PlanError as error:
            return False, error.notes[0]
        if form == "recurrent":
            return True, self.state
        size, why = ring_size(self.variant, self.algebra)
        if size is None:
            beside, _ = folded_ring_size(self.variant, self.algebra)
            if beside is None:
                return True, f"a KV cache, contiguous or paged; no ring: {why}"
            why = no_state(self.request, self.algebra)
            if why:
                return True, f"a KV cache, contiguous or paged; no state beside a ring: {why}"
            ring = f"a ring of {beside:,} keys beside {self.state}"
            return True, f"{ring}; or a KV cache, contiguous or paged"
        return True, f"a KV cache, contiguous or paged, or a ring of {size:,} keys"

    @property
    def state(self) -> str:
        """The state of one head."""
        qk, v = self.request.dims
        count = features_of(self.algebra.state, qk).count
        columns = v + (self.algebra.state.normalize == "sum")
        sums = " and their sums" if columns > v else ""
        size = count * columns * 4
        return f"a state of {count} features by {v} channels{sums} a head, {size:,} B in fp32"

    @property
    def cost_note(self) -> str:
        """The tiles stay those that were planned for T = 8,192."""
        return "What these tiles move and multiply at other lengths"

    def costs(self) -> Iterator[tuple[tuple[str, ...], list[Work]]]:
        """At each length, forward and backward by the tiles of the page."""
        for tokens in LENGTHS:
            work = [self._cost(plan, tokens) for plan in (self.forward, self.backward)]
            yield (f"{tokens:,}",), work

    def _cost(self, plan: Plan, tokens: int) -> Work:
        work = replace(self.request.workload, tq=tokens, tk=tokens)
        phase = "forward" if plan is self.forward else "backward"
        request = replace(self.request, workload=work, phase=phase)
        device = request.device
        found = [pass_work(request, step.kernel, step.tile) for step in plan.passes]
        seconds = (
            max(moved / (device.tbps * 1e12), flops / (device.tflops * 1e12))
            for moved, flops in found
        )
        flops, moved = sum(f for _, f in found), sum(m for m, _ in found)
        return flops, moved, 1e6 * sum(seconds)
