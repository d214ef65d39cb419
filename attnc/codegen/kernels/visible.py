"""The mask of one tile, for the loops that carry mask code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.plane_text import condition
from attnc.codegen.expression.symbolic import ref_symbol
from attnc.codegen.graph import STEP
from attnc.codegen.index import Loaded, tensor_argument
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.tile_range import KeyRange
from attnc.dsl.expr import Ref
from attnc.dsl.variant import Declared


def visible_lines(algebra: Algebra, bindings: Mapping[str, str]) -> tuple[str, ...]:
    """`m_st` = which pairs of the tile are visible; padding never is."""
    documents = document_lines(algebra, bindings, "[:, None]")
    if algebra.mask.clauses == ((),):
        return ("m_st = m_s[None, :]", *documents)
    line = f"m_st = {condition(algebra.mask, 'b_i[:, None]', 'o_s[None, :]')}"
    if algebra.within_causal:
        # no row of the tensor reaches past its own position, so none reaches past TK
        return (line, *documents)
    return (line, "m_st = m_st & m_s[None, :]", *documents)


def bound_arguments(ranges: KeyRange, declared: tuple[Declared, ...]) -> tuple[TensorArgument, ...]:
    """The arguments that bound the loops of a kernel: declared tensors, and lists of tiles."""
    found = [tensor_argument(tensor) for tensor in declared if tensor.name in ranges.bounds]
    if ranges.lists is not None:
        found.append(TensorArgument(ranges.lists.name, (), "i32", ranges.lists.layout))
    return tuple(found)


def document_refs(algebra: Algebra) -> tuple[Ref, ...]:
    """Where the tensors that name documents are read: at the query and at the key."""
    return tuple(Ref(name, ("b", at)) for name in algebra.mask.documents for at in ("i", "j"))


def masked_documents(loaded: Loaded, algebra: Algebra, others: tuple[Ref, ...] = ()) -> Loaded:
    """Loads of documents inside a loop stand where mask code does, but what `others` read too."""
    read = {f"u_{ref.name}" for ref in others}
    alone = {f"u_{name}" for name in algebra.mask.documents} - read
    nodes = tuple(
        replace(node, masked_only=True) if node.tensor in alone and node.region == STEP else node
        for node in loaded.nodes
    )
    return replace(loaded, nodes=nodes)


def document_lines(algebra: Algebra, bindings: Mapping[str, str], rows: str) -> list[str]:
    """Pairs of one document; `rows` spreads a vector of positions over the tile."""
    lines = []
    for name in algebra.mask.documents:
        query, key = (bindings[ref_symbol(Ref(name, ("b", at))).name] for at in ("i", "j"))
        lines.append(f"m_st = m_st & ({query} == {key})")
    if lines:
        # a row before token 0 is of no document
        lines.append(f"m_st = m_st & (b_i >= 0){rows}")
    return lines
