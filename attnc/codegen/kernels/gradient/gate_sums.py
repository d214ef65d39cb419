"""The `dgates` pass after a gated parallel form: a token's log decay from sums over rows and keys.

The decay of token t enters every pair with j < t <= i, so its gradient is the sum over the tokens
from t on of what the rows gained and the keys lost; fp64 keeps the digits that cancel.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import TOKEN_AXES
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.packed import packed_pass
from attnc.codegen.kernels.gradient.token_sums import (
    add_token_sums,
    start_token_sums,
    store_token_sums,
    token_arguments,
)
from attnc.codegen.tile_range import KeyLoop


def dgates_kernel(facts: GradientFacts) -> Kernel:
    """One program: the tokens of one query head, the last one first."""
    algebra = facts.algebra
    assert algebra.log_decay is not None
    builder = GraphBuilder("dgates")
    names = scalar_names(algebra.log_decay, facts.declared)
    loaded = load_refs(algebra.decay_refs, facts.declared, TOKEN_AXES, two_lanes=False, names=names)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    lines, index = index_bindings(algebra.log_decay)
    if lines:
        builder.map("f_index", SETUP, (), *lines)
    start_token_sums(builder, facts, SETUP)
    zero = "b_gs = tl.zeros([], tl.float64)"
    builder.fold("b_gs", SETUP, (), zero, dtype="fp64", note="the sum of what comes after")
    builder.extend(node for node in loaded.nodes if node.region == STEP)
    builder.load(
        "b_r", STEP, ("BC",), tensor="drows", address="drows + i_bh * TQ + o_t - (TK - TQ)",
        guard="m_t & (o_t >= TK - TQ)", note="what the rows gained, and the keys lost",
    )  # fmt: skip
    builder.load(
        "b_x", STEP, ("BC",), tensor="dcolumns", address="dcolumns + i_bh * TK + o_t", guard="m_t"
    )
    folded = (
        "b_x = b_r.to(tl.float64) - b_x.to(tl.float64)",
        "b_t = tl.sum(b_x, 0)",
        "b_dg = (b_gs + b_t - tl.cumsum(b_x, 0) + b_x).to(ACC)",
        "b_gs = b_gs + b_t",
    )
    builder.fold(
        "b_gs", STEP, (), *folded, name="fold b_gs", reads=("b_gs", "b_r", "b_x"), dtype="fp64"
    )
    add_token_sums(builder, facts, {**loaded.bindings, **index}, tokens="TK")
    tile, tiles = ("i_n", "N") if algebra.mask.packed else ("0", "1")
    store_token_sums(builder, facts, FINISH, tile=tile, tiles=tiles)
    tensors = (
        TensorArgument("drows", (), "acc", "[B, HQ, TQ]"),
        TensorArgument("dcolumns", (), "acc", "[B, HQ, TK]"),
        *loaded.tensors,
        *token_arguments(facts),
    )
    loop = KeyLoop("tl.cdiv(TK, BC) - 1", "-1", True, "the last tokens first")
    scalars = ("TQ", "TK", "HQ", "HKV")
    kernel = Kernel("dgates", "", tensors, scalars, ("K", "BC"), builder.build(), (), (loop,))
    return packed_pass(kernel, facts)
