"""A page of the gallery of a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from attnc.cli.gallery_page import DEVICE, LENGTHS, TOKENS, Page, Work
from attnc.cli.gallery_snippet import filter_snippet
from attnc.codegen.convolution.formula import filter_formula
from attnc.codegen.convolution.step_planner import check_decodes
from attnc.codegen.convolution.work import taps_of
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.planner import plans
from attnc.dsl.butterfly import MOST_TOKENS
from attnc.dsl.convolution import Convolution
from attnc.errors import PlanError

# two sequences, which a transform takes as one
_BATCH, _CHANNELS = 2, 1024


@dataclass(frozen=True)
class ConvolutionPage(Page):
    """Plans of two sequences, with as many taps as the mask shows."""

    variant: Convolution

    @cached_property
    def request(self) -> Request:
        """8,192 tokens, or the most that a learned transform takes."""
        return self._request(self._most(TOKENS))

    def _request(self, tokens: int) -> Request:
        work = Workload(_BATCH, tokens, tokens, _CHANNELS, _CHANNELS)
        return Request(self.variant, DEVICES[DEVICE], (1, 1), workload=work)

    def _most(self, tokens: int) -> int:
        return min(tokens, MOST_TOKENS) if self.variant.filter.learned else tokens

    @property
    def introduction(self) -> str:
        """Token i of one channel; of learned factors, what the formula leaves unsaid."""
        text = "The conv family. Token *i* of channel *c*"
        if not self.variant.filter.learned:
            return f"{text}:"
        return (
            f"{text}, where *F* is the unitary DFT of *N* = *N*₁ *N*₂ points, and the declared "
            "factors are complex:"
        )

    @property
    def formula(self) -> str:
        """The definition in LaTeX."""
        return filter_formula(self.variant)

    @property
    def recurrence(self) -> str:
        """Nothing: a filter reads the tokens themselves."""
        return ""

    @property
    def snippet(self) -> str:
        """A call that runs on a CPU."""
        return filter_snippet(self.variant, self.loaded)

    @property
    def workload(self) -> str:
        """The shape that is planned for, on one line."""
        work = self.request.workload
        taps = taps_of(self.request)
        return f"B={work.batch} T={work.tk:,} C={work.hq:,}, {taps:,} taps a channel"

    @property
    def remark(self) -> str:
        """What decided between the forms, in figures."""
        return f"Chosen {self.forward.form_reason}"

    def forms(self) -> Iterator[tuple[str, bool, str]]:
        """Each form, whether there is one, and why; then decode and packed sequences."""
        for verdict in self.forward.algebra.forms:
            yield verdict.form, verdict.legal, verdict.reason
        yield ("decode", *self._decode())
        yield "packed sequences", False, "a filter runs on from one sequence into the next"

    def _decode(self) -> tuple[bool, str]:
        try:
            check_decodes(self.variant)
        except PlanError as error:
            return False, error.notes[0]
        highest = self.variant.filter.highest
        if highest is None:
            return True, "a ring of as many inputs a channel as there are taps"
        return True, f"a ring of {highest + 1:,} inputs a channel"

    @property
    def cost_note(self) -> str:
        """The forms differ from length to length, and so do the factors of a transform."""
        return "What the plans for other lengths move and multiply"

    @property
    def cost_heads(self) -> tuple[str, ...]:
        """The form beside the length."""
        return "T", "form"

    def costs(self) -> Iterator[tuple[tuple[str, ...], list[Work]]]:
        """At each length, forward and backward as they are planned for it."""
        for tokens in sorted({self._most(length) for length in LENGTHS}):
            request = self._request(tokens)
            chosen = [plans(replace(request, phase=x))[0] for x in ("forward", "backward")]
            forward, backward = (plan.form for plan in chosen)
            form = forward if forward == backward else f"{forward}, back {backward}"
            yield (f"{tokens:,}", form), [_work(plan) for plan in chosen]

    @property
    def printed_by(self) -> str:
        """The form depends on the shape, so the command names it."""
        work = self.request.workload
        shape = f"--shape {work.batch},{work.tk},{work.hq}"
        return f"<code>attnc emit {self.argument} {shape}</code>"


def _work(plan: Plan) -> Work:
    costs = [step.cost for step in plan.passes]
    return sum(c.flops for c in costs), sum(c.hbm_bytes for c in costs), plan.time_us
