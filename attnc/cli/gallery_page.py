"""What every page of the gallery says of a variant, all of it from the declaration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from attnc.codegen.plan import PassPlan, Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import dumps
from attnc.dsl.variant import Variant

DEVICE = "h100"
TOKENS = 8192
LENGTHS = (1024, 4096, 16384, 65536)

# FLOPs, HBM bytes, microseconds at the roofline
Work = tuple[float, float, float]


@dataclass(frozen=True)
class Page(ABC):
    """One variant, which `file` declares or which ships, with its plans for bf16 on an H100."""

    variant: Variant
    file: str = ""

    @property
    def argument(self) -> str:
        """What a command line calls it."""
        return f"{self.file}:{self.variant.name}" if self.file else self.variant.name

    @property
    def loaded(self) -> str:
        """The expression that gives the variant in Python."""
        source = f'load("{self.file}")' if self.file else "shipped()"
        return f'attnc.{source}["{self.variant.name}"]'

    @property
    @abstractmethod
    def request(self) -> Request:
        """What is planned."""

    @cached_property
    def forward(self) -> Plan:
        """The first-ranked plan of the forward."""
        return plans(self.request)[0]

    @cached_property
    def backward(self) -> Plan:
        """The first-ranked plan of the gradients."""
        return plans(replace(self.request, phase="backward"))[0]

    @property
    def declaration(self) -> str:
        """The declaration without what the page's head says already."""
        lines = dumps(self.variant).splitlines()
        return "\n".join(x for x in lines if not x.startswith(("about = ", "paper = ")))

    @property
    @abstractmethod
    def introduction(self) -> str:
        """The line above the formula: the family, and what the formula is of."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The definition in LaTeX."""

    @property
    @abstractmethod
    def recurrence(self) -> str:
        """The fold over tokens in LaTeX, or nothing."""

    @abstractmethod
    def forms(self) -> Iterator[tuple[str, bool, str]]:
        """Each form, whether there is one, and why; then decode and packed sequences."""

    @property
    @abstractmethod
    def snippet(self) -> str:
        """A call that runs on a CPU."""

    @property
    @abstractmethod
    def workload(self) -> str:
        """The shape that is planned for, on one line."""

    @property
    @abstractmethod
    def remark(self) -> str:
        """What else the plan depends on, in a sentence without its stop."""

    def passes(self) -> Iterator[tuple[str, PassPlan]]:
        """The passes of the forward, then those of the backward."""
        yield from (("forward", step) for step in self.forward.passes)
        yield from (("backward", step) for step in self.backward.passes)

    @property
    @abstractmethod
    def cost_note(self) -> str:
        """What the rows of `costs` hold, up to its first stop."""

    @property
    def cost_heads(self) -> tuple[str, ...]:
        """What stands above the first cells of a row of `costs`."""
        return ("T",)

    @abstractmethod
    def costs(self) -> Iterator[tuple[tuple[str, ...], list[Work]]]:
        """At each length the first cells of a row, then the work forward and backward."""

    @property
    def printed_by(self) -> str:
        """The command that prints the source, as HTML."""
        return f"<code>attnc emit {self.argument}</code> at these dims"

    @property
    def source(self) -> str:
        """The emitted module of the forward."""
        return render(self.forward).rstrip()
