"""A tile of pairs in the backward where every channel decays by itself: pair by pair, any mask.

What the chunked form cuts apart at levels is held whole here, channel by channel. The exponents'
gradients leave out a token with itself, whose decay is nothing; see `channel_gradient`.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, HEAD, SETUP, STEP, TAIL, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.side import Side


def channel_step(
    builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded, seen: tuple[str, ...]
) -> None:
    """`b_e` = decays of the pairs' channels, `b_p` the weights (by keys) and `b_dp` their gradient.

    `seen` are the statements that make `m_st`.
    """
    by_rows = side.kernel == "dq"
    i, j = ("[:, None, :]", "[None, :, :]") if by_rows else ("[None, :, :]", "[:, None, :]")
    tile = (*side.tile, "BK")
    apart = f"b_e = (b_gi{i} - b_gj{j}).to(ACC)"
    note = "log2 decay from key to query, channel by channel"
    builder.map("b_e", STEP, tile, apart, reads=("b_gi", "b_gj"), note=note)
    hidden = 'b_e = tl.where(m_st[:, :, None], b_e, float("-inf"))'
    reads = ("b_e", *(node.buffer for node in loaded.nodes if facts.algebra.mask.documents))
    builder.map(
        "b_e", STEP, tile, *seen, hidden, name="visible channels", reads=reads, masked_only=True,
        note="what the mask hides decays to nothing, before exp",
    )  # fmt: skip
    builder.map("b_e", STEP, tile, "b_e = tl.exp2(b_e)", name="decay", reads=("b_e",))
    if not by_rows:
        line = f"b_p = tl.sum(b_q.to(ACC){i} * b_k.to(ACC){j} * b_e, 2)"
        builder.map("b_p", STEP, side.tile, line, name="weight", reads=("b_e", "b_q", "b_k"))
    builder.dot("b_dp", STEP, side.tile, *side.outputs, note="do . v: gradient of the weight")
    if facts.summed:
        line = f"b_dp = b_dp + b_d{side.i}"
        builder.map("b_dp", STEP, side.tile, line, name="normaliser", reads=("b_dp", "b_d"))


def fold_channels(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """Add the tile to dq or dk, and to what the exponents gained."""
    by_rows = side.kernel == "dq"
    other, total = ("b_k", "b_dq") if by_rows else ("b_q", "b_dk")
    held = side.tile[0]
    line = f"b_x = b_dp[:, :, None] * {other}.to(ACC)[None, :, :] * b_e"
    reads = ("b_dp", "b_e", other)
    note = "gradient of each pair's channels, sum by sum"
    builder.map("b_x", STEP, (*side.tile, "BK"), line, reads=reads, note=note)
    line = f"{total} = {total} + tl.sum(b_x, 1)"
    name = f"fold {total.removeprefix('b_')}"
    builder.fold(total, STEP, (held, "BK"), line, name=name, reads=(total, "b_x"))
    if facts.derivation.decay:
        lines = (
            f"m_a = b_i{side.i} != o_s{side.j}",
            "b_r = b_r + tl.sum(tl.where(m_a[:, :, None], b_x, 0.0), 1)",
        )
        note = "a token with itself has no decay"
        builder.fold(
            "b_r", STEP, (held, "BK"), *lines, name="fold b_r", reads=("b_r", "b_x"), note=note
        )


def start_channel_rate(builder: GraphBuilder, side: Side) -> None:
    """The accumulator of the exponents' gradients, anew for each head of a group."""
    held = side.tile[0]
    region = SETUP if side.kernel == "dq" else HEAD
    line = f"b_r = tl.zeros([{held}, BK], ACC)"
    note = "sums of the exponents' gradients, less a factor"
    builder.fold("b_r", region, (held, "BK"), line, note=note, name="start b_r")


def store_channel_rate(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """What a later pass sums over the tokens: q dq by rows, k dk by keys."""
    by_rows = side.kernel == "dq"
    target, row = (
        ("drows", "i_bh * TQ + o_t")
        if by_rows
        else ("dcolumns", f"(i_b * HQ + i_h) * {facts.keys} + o_s")
    )
    region, guard = (FINISH, "m_t") if by_rows else (TAIL, "m_s")
    other = "b_q" if by_rows else "b_k"
    builder.store(
        region, (side.tile[0], "BK"), f"b_r * {other}", name=f"store {target}",
        reads=("b_r", other), tensor=target, guard=f"{guard}[:, None] & (o_k < K)[None, :]",
        address=f"{target} + ({row})[:, None] * K + o_k[None, :]",
    )  # fmt: skip


def channel_rate_arguments(side: Side) -> list[TensorArgument]:
    """The workspace of the exponents' gradients."""
    name, count = ("drows", "TQ") if side.kernel == "dq" else ("dcolumns", "TK")
    layout = f"[B, HQ, {count}, K]: sums of the exponents' gradients"
    return [TensorArgument(name, (), "acc", layout, written=True)]
