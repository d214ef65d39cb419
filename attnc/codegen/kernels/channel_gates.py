"""Decays a channel: the passes that sum them, and how the passes after read the sums.

A pair of tokens weighs sum_k q_ik k_jk exp(G_ik - G_jk) with G the summed log decays. Sums are
fp64: a difference of two must keep the digits of a weak gate that stands among strong ones, where
fp32 keeps 1e-4 of exponents near -1000. Exponents are differences, of a later token's sum less an
earlier one's, so none is positive and nothing overflows, however strong the gates.
Source: gated linear attention, Yang et al. 2023 (arXiv 2312.06635), equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.decay import LOG2E, index_bindings
from attnc.codegen.kernels.sequences import in_sequences
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.variant import Variant

# the sums of a chunk's tokens, and those of all tokens up to each
CHUNK_LAYOUT = "[B, HS, T, K]: log2 decay from the chunk's start"
WHOLE_LAYOUT = "[B, HS, TK, K]: summed log2 decay"


def channel_axes(region: str) -> Mapping[str, Axis]:
    """Tokens down, channels of k across; `region` is where the tokens are known."""
    return {
        "b": Axis("i_b", ""),
        "h": Axis("i_h", ""),
        "hkv": Axis("i_hkv", ""),
        "t": Axis("o_t", "row", guard="m_t", tile="BC", region=region),
        "k": Axis("o_k", "column", guard="m_k", tile="BK"),
    }


def chunk_gates_kernel(variant: Variant, algebra: Algebra, printer: Printer) -> Kernel:
    """gates[t, k] = the sum over the tokens from the start of t's chunk through t: all at once."""
    builder = GraphBuilder("chunk_gates")
    loaded = _log_decays(builder, variant, algebra, printer, SETUP)
    line = "b_g = tl.cumsum(b_a.to(tl.float64), 0)"
    builder.scan("b_g", SETUP, ("BC", "BK"), line, dtype="fp64", reads=("b_a",))
    _store(builder, SETUP)
    tensors = (*loaded.tensors, TensorArgument("gates", (), "fp64", CHUNK_LAYOUT, written=True))
    scalars, constants = ("T", "HQ", "HKV", "HS"), ("K", "BC", "BK")
    return Kernel("chunk_gates", "", tensors, scalars, constants, builder.build())


def channel_gates_kernel(variant: Variant, algebra: Algebra, printer: Printer) -> Kernel:
    """gates[t, k] = the sum over tokens 0..t, BK channels of one state head a program."""
    builder = GraphBuilder("channel_gates")
    zero = "b_gs = tl.zeros([BK], tl.float64)"
    builder.fold("b_gs", SETUP, ("BK",), zero, dtype="fp64", note="the sums so far")
    loaded = _log_decays(builder, variant, algebra, printer, STEP)
    line = "b_g = b_gs[None, :] + tl.cumsum(b_a.to(tl.float64), 0)"
    builder.scan("b_g", STEP, ("BC", "BK"), line, dtype="fp64", reads=("b_a", "b_gs"))
    _store(builder, STEP)
    total = "b_gs = b_gs + tl.sum(b_a.to(tl.float64), 0)"
    builder.fold(
        "b_gs", STEP, ("BK",), total, dtype="fp64", name="fold b_gs", reads=("b_gs", "b_a", "b_g")
    )
    tensors = (*loaded.tensors, TensorArgument("gates", (), "fp64", WHOLE_LAYOUT, written=True))
    loop = KeyLoop("0", "tl.cdiv(T, BC)", True, "tokens in order")
    scalars, constants = ("T", "HQ", "HKV", "HS"), ("K", "BC", "BK")
    kernel = Kernel(
        "channel_gates", "", tensors, scalars, constants, builder.build(), loops=(loop,)
    )
    return in_sequences(kernel, algebra)


def _log_decays(
    builder: GraphBuilder, variant: Variant, algebra: Algebra, printer: Printer, region: str
) -> Loaded:
    """`b_a` = the log2 decay of each token's channels, 0 in padding."""
    assert algebra.log_decay is not None
    declared = (*variant.params, *variant.inputs)
    names = scalar_names(algebra.log_decay, declared)
    axes = channel_axes(region)
    loaded = load_refs(algebra.decay_refs, declared, axes, two_lanes=True, names=names)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    lines, index = index_bindings(algebra.log_decay)
    if lines:
        builder.map("f_index", SETUP, (), *lines, note="indices as numbers")
    builder.extend(node for node in loaded.nodes if node.region == STEP)
    bound = printer.bound({**loaded.bindings, **index})
    masked = f"b_a = tl.where(m_t[:, None], b_a * {number(LOG2E)}, 0.0)"
    gate = (*bound.statements("b_a", algebra.log_decay), masked)
    reads = ("f_index", *(node.buffer for node in loaded.nodes))
    note = "log2 decay of each token, channel by channel"
    builder.map("b_a", region, ("BC", "BK"), *gate, reads=reads, note=note)
    return loaded


def _store(builder: GraphBuilder, region: str) -> None:
    builder.store(
        region, ("BC", "BK"), "b_g", reads=("b_g",), tensor="gates",
        address="p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :]",
        guard="m_t[:, None] & m_k[None, :]",
    )  # fmt: skip


def gates_argument() -> TensorArgument:
    """The sums of chunks, as the passes over chunks read them."""
    return TensorArgument("gates", (), "fp64", CHUNK_LAYOUT)


def load_chunk_gates(builder: GraphBuilder, region: str, *, total: bool) -> None:
    """`b_g[c, k]`: log2 decay from the chunk's start through token c; `b_gl[k]`: of all of it."""
    builder.load(
        "b_g", region, ("BC", "BK"), dtype="fp64", tensor="gates", reads=("p_gates",),
        address="p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :]",
        guard="m_t[:, None] & m_k[None, :]",
        note="log2 decay from the chunk's start through each token",
    )  # fmt: skip
    if total:
        builder.load(
            "b_gl", region, ("BK",), dtype="fp64", tensor="gates", reads=("p_gates",),
            lines=("o_l = tl.minimum(i_c * BC + BC, T) - 1",),
            address="p_gates + tl.cast(o_l, tl.int64) * K + o_k", guard="m_k",
            note="and over the whole chunk",
        )  # fmt: skip
