"""A tile of pairs where every channel decays by itself: each pair's channels, one by one.

The sums stand in fp64; hidden pairs are taken out before exp, since a key after its query would
grow. No two factors are taken apart, so that any mask is served.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.visible import visible_lines

PAIR = ("BT", "BS", "BK")


def channel_scores(builder: GraphBuilder, algebra: Algebra, loaded: Loaded) -> None:
    """`b_s` = sum_k q_ik k_jk exp(G_ik - G_jk) of one key tile, 0 where the mask hides."""
    load_row_gates(builder)
    load_key_gates(builder)
    apart = "b_e = (b_gi[:, None, :] - b_gj[None, :, :]).to(ACC)"
    note = "log2 decay from key to query, channel by channel"
    builder.map("b_e", STEP, PAIR, apart, reads=("b_gi", "b_gj"), note=note)
    hidden = 'b_e = tl.where(m_st[:, :, None], b_e, float("-inf"))'
    builder.map(
        "b_e", STEP, PAIR, *visible_lines(algebra, loaded.bindings), hidden,
        name="visible channels", reads=("b_e", *(n.buffer for n in loaded.nodes)),
        masked_only=True, note="what the mask hides decays to nothing, before exp",
    )  # fmt: skip
    lines = (
        "b_e = tl.exp2(b_e)",
        "b_s = tl.sum(b_q.to(ACC)[:, None, :] * b_k.to(ACC)[None, :, :] * b_e, 2)",
    )
    reads = ("b_e", "b_q", "b_k")
    builder.map("b_s", STEP, ("BT", "BS"), *lines, reads=reads, note="sum over the channels")


def load_row_gates(builder: GraphBuilder, region: str = SETUP) -> None:
    """`b_gi[i, k]`: the sums of the tile's queries."""
    builder.load(
        "b_gi", region, ("BT", "BK"), dtype="fp64", tensor="gates",
        address="p_gates + b_i.to(tl.int64)[:, None] * K + o_k[None, :]",
        guard="(m_t & (b_i >= 0))[:, None] & (o_k < K)[None, :]",
        note="summed log2 decay of the rows",
    )  # fmt: skip


def load_key_gates(builder: GraphBuilder, region: str = STEP) -> None:
    """`b_gj[j, k]`: the sums of the tile's keys."""
    builder.load(
        "b_gj", region, ("BS", "BK"), dtype="fp64", tensor="gates",
        address="p_gates + o_s.to(tl.int64)[:, None] * K + o_k[None, :]",
        guard="m_s[:, None] & (o_k < K)[None, :]",
        note="summed log2 decay of the keys",
    )  # fmt: skip
