"""A sink: the logit of a key of value 0 that every row sees, in log2 as all scores are."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import SETUP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernels.decay import LOG2E, index_bindings
from attnc.codegen.kernels.visible import document_refs, masked_documents
from attnc.dsl.expr import Ref
from attnc.dsl.variant import Declared


def load_score(
    algebra: Algebra, declared: tuple[Declared, ...], axes: Mapping[str, Axis], *, sink: bool
) -> Loaded:
    """Loads of what the score and the mask read and, with `sink`, of what the sink reads too."""
    assert algebra.score is not None
    refs, names = algebra.score_refs, scalar_names(algebra.score, declared)
    if sink and algebra.sink is not None:
        refs = tuple(dict.fromkeys((*refs, *_unlike(algebra.sink_refs, refs))))
        names |= scalar_names(algebra.sink, declared)
    refs = (*refs, *_unlike(document_refs(algebra), refs))
    loaded = load_refs(refs, declared, axes, two_lanes=True, names=names)
    return masked_documents(loaded, algebra, algebra.score_refs)


def _unlike(refs: tuple[Ref, ...], known: tuple[Ref, ...]) -> list[Ref]:
    seen = {(ref.name, ref.index) for ref in known}
    return [ref for ref in refs if (ref.name, ref.index) not in seen]


def sink_node(builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer) -> None:
    """`b_sink`, one number a program."""
    assert algebra.sink is not None
    lines, index = index_bindings(algebra.sink)
    bound = printer.bound({**loaded.bindings, **index})
    lines = [
        *lines,
        *bound.statements("b_sink", algebra.sink),
        f"b_sink = b_sink * {number(LOG2E)}",
    ]
    reads = tuple(node.buffer for node in loaded.nodes if node.region == SETUP)
    note = "the sink's logit, in log2"
    builder.map("b_sink", SETUP, (), *lines, reads=reads, note=note)
