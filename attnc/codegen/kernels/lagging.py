"""The chunk of keys that lags behind a chunk of rows, and enters the state once they have read it.

It stands LAG chunks before the rows: so many that every row of the next chunk sees all of it.
"""

from __future__ import annotations

from attnc.codegen.graph import GraphBuilder
from attnc.codegen.index import Axis, Loaded
from attnc.codegen.kernels.chunk import ChunkFacts, Fold
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features
from attnc.codegen.kernels.value import load_value, map_value, setup_nodes, value_axes

LAGGING = Fold("b_kl", "b_fl", "b_vl", "", "", there="m_l")


def lagging_values(builder: GraphBuilder, facts: ChunkFacts, region: str) -> Loaded:
    """Loads of what the declared value of those keys reads; those before the loops are added."""
    axes = value_axes(Axis("o_l", "row", guard="m_l", tile="BC", region=region))
    values = load_value(facts.variant, facts.algebra, axes, "b_ul_")
    setup_nodes(builder, values)
    return values


def load_lagging(builder: GraphBuilder, facts: ChunkFacts, values: Loaded, region: str) -> None:
    """Their features' channels `b_kl` and what they hand over, `b_vl`; `i_c` is the rows' chunk."""
    lines = ("o_l = (i_c - LAG) * BC + r_c", "m_l = (o_l >= 0) & (o_l < T)")
    note = "the keys that enter the state once these rows have read it"
    builder.map("o_l", region, ("BC",), *lines, dtype="i32", note=note)
    start = "(i_c - LAG) * BC"
    for name, columns, mask in (("k", "BK", facts.k_mask), ("v", "BV", facts.v_mask)):
        guard = join_guards("m_l[:, None]", mask)
        strides = (f"stride_{name}_t", f"stride_{name}_{name}")
        tile = load_tile(
            f"b_{name}l", f"p_{name}", strides, ("r_c", f"o_{name}"), ("BC", columns), region,
            guard=guard, start=start,
        )  # fmt: skip
        builder.add(tile)
    guard = join_guards("m_l[:, None]", facts.k_mask)
    phi = facts.algebra.phi
    builder.extend(map_features("b_kl", phi, ("BC", "BK"), region, facts.printer, guard=guard))
    map_value(
        builder, facts.algebra, values, facts.printer, region, ("BC", "BV"),
        source="b_vl", target="b_vl", guard=join_guards("m_l[:, None]", facts.v_mask),
    )  # fmt: skip
