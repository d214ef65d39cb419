"""A decay's gradients once `b_dg`, that of each token's log decay, is known."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.derive import Partial
from attnc.codegen.graph import STEP, GraphBuilder
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.pairs import shared_lines
from attnc.codegen.kernels.gradient.partial_sums import partial_sum


def token_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """The workspaces of all derivatives of the log decay."""
    return [partial_sum(partial).argument() for partial in facts.derivation.decay]


def start_token_sums(builder: GraphBuilder, facts: GradientFacts, region: str) -> None:
    """An accumulator for each derivative that all tokens share."""
    for partial in facts.derivation.decay:
        if not _varies(partial):
            name = f"b_a_{partial.label}"
            line = f"{name} = tl.zeros([BC], ACC)"
            builder.fold(name, region, ("BC",), line, note=f"gradient of {partial}",
                         name=f"start {name}")  # fmt: skip


def add_token_sums(
    builder: GraphBuilder, facts: GradientFacts, bindings: Mapping[str, str], *, tokens: str
) -> None:
    """Chain `b_dg` into every declared tensor: stored a token, or added up."""
    slopes = {f"b_l_{p.label}": p.slope for p in facts.derivation.decay}
    lines = ["b_dg = tl.where(m_t, b_dg, 0.0)", *shared_lines(slopes, bindings, facts.printer)]
    note = "through the declared log decay; padding has none"
    builder.map("b_dg", STEP, ("BC",), *lines, name="slopes", reads=("b_dg", "b_gs"), note=note)
    for partial in facts.derivation.decay:
        name = f"b_a_{partial.label}"
        value = f"b_dg * b_l_{partial.label}"
        if _varies(partial):
            place = f"du_{partial.label} + (i_b * HQ + i_h) * {tokens} + o_t"
            builder.store(
                STEP, ("BC",), value, name=f"store du_{partial.label}", reads=("b_dg",),
                tensor=f"du_{partial.label}", address=place, guard="m_t",
            )  # fmt: skip
        else:
            line = f"{name} = {name} + {value}"
            builder.fold(name, STEP, ("BC",), line, name=f"fold {name}", reads=("b_dg", name))


def store_token_sums(
    builder: GraphBuilder, facts: GradientFacts, region: str, *, tile: str, tiles: str
) -> None:
    """What was added up, at this program's place among the `tiles` of a head."""
    for partial in facts.derivation.decay:
        if _varies(partial):
            continue
        name = f"b_a_{partial.label}"
        head = "(i_b * HQ + i_h)"
        place = f"{head} * {tiles} + {tile}" if tiles != "1" else head
        builder.store(
            region, (), f"tl.sum({name}, 0)", name=f"store du_{partial.label}", reads=(name,),
            tensor=f"du_{partial.label}", address=f"du_{partial.label} + {place}",
        )  # fmt: skip


def _varies(partial: Partial) -> bool:
    return "t" in partial.index
