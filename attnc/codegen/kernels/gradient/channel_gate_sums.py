"""The `dchannel_gates` pass after a parallel form: tokens' log decays from sums of rows and keys.

As `dgates`, channel by channel: the decay of token t enters every pair with j < t <= i, and fp64
keeps the digits that cancel between what the rows from t on gained and the keys lost.
"""

from __future__ import annotations

from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.gradient.channel_sums import (
    channel_sum_arguments,
    load_slopes,
    store_channel_sums,
)
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.packed import packed_pass
from attnc.codegen.tile_range import KeyLoop


def dchannel_gates_kernel(facts: GradientFacts) -> Kernel:
    """One program: the tokens of one query head, the last one first."""
    builder = GraphBuilder("dchannel_gates")
    zero = "b_gs = tl.zeros([BK], tl.float64)"
    builder.fold("b_gs", SETUP, ("BK",), zero, dtype="fp64", note="the sums of what comes after")
    channels = "(o_k < K)[None, :]"
    builder.load(
        "b_r", STEP, ("BC", "BK"), tensor="drows", note="what the rows gained, and the keys lost",
        address="drows + (i_bh * TQ + o_t - (TK - TQ))[:, None] * K + o_k[None, :]",
        guard=f"(m_t & (o_t >= TK - TQ))[:, None] & {channels}",
    )  # fmt: skip
    builder.load(
        "b_x", STEP, ("BC", "BK"), tensor="dcolumns", guard=f"m_t[:, None] & {channels}",
        address="dcolumns + (i_bh * TK + o_t)[:, None] * K + o_k[None, :]",
    )  # fmt: skip
    lines = (
        "b_x = b_r.to(tl.float64) - b_x.to(tl.float64)",
        "b_t = tl.sum(b_x, 0)",
        "b_dg = ((b_gs + b_t)[None, :] - tl.cumsum(b_x, 0) + b_x).to(ACC)",
    )
    builder.map("b_dg", STEP, ("BC", "BK"), *lines, reads=("b_gs", "b_r", "b_x"))
    line = "b_gs = b_gs + b_t"
    builder.fold(
        "b_gs", STEP, ("BK",), line, name="fold b_gs", reads=("b_gs", "b_dg"), dtype="fp64"
    )
    loaded = load_slopes(builder, facts, STEP)
    tiles = "(NK // BC + N)" if facts.algebra.mask.packed else "tl.cdiv(TK, BC)"
    store_channel_sums(builder, facts, STEP, loaded.bindings, tokens="TK", tile="i_c", tiles=tiles)
    tensors = (
        TensorArgument("drows", (), "acc", "[B, HQ, TQ, K]"),
        TensorArgument("dcolumns", (), "acc", "[B, HQ, TK, K]"),
        *loaded.tensors,
        *channel_sum_arguments(facts),
    )
    loop = KeyLoop("tl.cdiv(TK, BC) - 1", "-1", True, "the last tokens first")
    scalars, constants = ("TQ", "TK", "HQ", "HKV"), ("K", "BC", "BK")
    kernel = Kernel(
        "dchannel_gates", "", tensors, scalars, constants, builder.build(), loops=(loop,)
    )
    return packed_pass(kernel, facts)
