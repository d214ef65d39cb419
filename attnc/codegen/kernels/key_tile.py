"""One tile of keys that a kernel over pairs walks past: its scores, its values, what they fold."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.operand import load_tile, map_features
from attnc.codegen.kernels.value import map_value


def load_keys(builder: GraphBuilder, algebra: Algebra, printer: Printer, k_mask: str) -> None:
    """A tile of k, mapped by phi; padding is zero."""
    shape = ("BS", "BK")
    builder.add(
        load_tile(
            "b_k", "p_k", ("stride_k_t", "stride_k_k"), ("r_s", "o_k"), shape, STEP,
            guard=k_mask, edge_guard="m_s[:, None]", start="i_s",
        )
    )  # fmt: skip
    # hidden scores are taken out whole, but where each channel decays one by one
    rows = "m_s[:, None]" if algebra.by_channel else ""
    builder.extend(
        map_features("b_k", algebra.phi, shape, STEP, printer, guard=k_mask, edge_guard=rows)
    )


def score_keys(builder: GraphBuilder, query: str) -> None:
    """`b_s` = the rows of `query` times the keys."""
    left = Operand(query, query, ("BT", "BK"))
    right = Operand("b_k", "tl.trans(b_k)", ("BK", "BS"), transposed=True)
    builder.dot("b_s", STEP, ("BT", "BS"), left, right, note="[BT, BK] @ [BK, BS]")


def load_values(
    builder: GraphBuilder, algebra: Algebra, values: Loaded, printer: Printer, v_mask: str
) -> None:
    """A tile of what keys hand over."""
    shape, rows = ("BS", "BV"), "m_s[:, None]"
    builder.add(
        load_tile(
            "b_v", "p_v", ("stride_v_t", "stride_v_v"), ("r_s", "o_v"), shape, STEP,
            guard=v_mask, edge_guard=rows, start="i_s",
        )
    )  # fmt: skip
    map_value(builder, algebra, values, printer, STEP, shape, guard=v_mask, edge_guard=rows)


def fold_values(builder: GraphBuilder, weights: str) -> None:
    """Add the weights times the values to the accumulator."""
    left = Operand(weights, f"{weights}.to(b_v.dtype)", ("BT", "BS"))
    right = Operand("b_v", "b_v", ("BS", "BV"))
    builder.dot(
        "b_o", STEP, ("BT", "BV"), left, right,
        name="values", into="b_o", carried=True, note="[BT, BS] @ [BS, BV]",
    )  # fmt: skip
