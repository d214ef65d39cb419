"""The gradient of a sink, a key of value 0 that every row sees: by rows, in the `dq` pass."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.graph import FINISH, SETUP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import partial_sum, sums_scores
from attnc.codegen.kernels.sink import sink_node


def sink_matters(facts: GradientFacts) -> bool:
    """Whether the `dq` pass reads the sink: for its gradient, or to take delta's rounding out."""
    return facts.algebra.sink is not None and sums_scores(facts)


def start_sink(builder: GraphBuilder, facts: GradientFacts, loaded: Loaded) -> None:
    """The weight of the sink in every row."""
    if not sink_matters(facts):
        return
    sink_node(builder, facts.algebra, loaded, facts.printer)
    line = "b_ps = tl.exp2(b_sink - b_m)"
    note = "the weight of the sink"
    builder.map("b_ps", SETUP, ("BT",), line, reads=("b_sink", "b_m"), note=note)


def store_sink(builder: GraphBuilder, facts: GradientFacts, bindings: Mapping[str, str]) -> None:
    """What the rows of a tile give the sink: it is a key of value 0."""
    if not facts.derivation.sink:
        return
    line = "b_dsink = -tl.sum(tl.where(m_t, b_ps * b_de, 0.0), 0)"
    builder.reduce("b_dsink", FINISH, (), line, reads=("b_ps", "b_de"), name="sum the sink")
    bound = facts.printer.bound(bindings)
    for partial in facts.derivation.sink:
        lines = bound.statements("b_y", partial.slope)
        builder.store(
            FINISH, (), *lines, "b_dsink * b_y", name=f"store du_{partial.label}",
            reads=("b_dsink",), tensor=f"du_{partial.label}",
            address=f"du_{partial.label} + i_bh * NT + i_t",
        )  # fmt: skip


def sink_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """The workspaces of a sink's gradient."""
    return [partial_sum(partial).argument() for partial in facts.derivation.sink]
