"""Gradients of a chunk where every channel decays by itself: the `dpairs` and `dvalue` passes.

    dq_i = sum_j dW_ij k_j e_ij        dk_j = sum_i dW_ij q_i e_ij        e_ij = exp(G_i - G_j)

channel by channel, cut apart at the levels of `channel_pairs` as the weights are. The gradient of
the exponents is q_i dq_i of a row less k_j dk_j of a key, and a token's log decay gets the sum over
the pairs that it lies between: inside the chunk, from before it, to after it and across it. A token
with itself has no decay and is left out of those sums, where it would cancel all but the rounding.
Source: gated linear attention, Yang et al. 2023 (arXiv 2312.06635), section 4.4 and appendix.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.index import Axis, Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_gates import gates_argument, load_chunk_gates
from attnc.codegen.kernels.channel_pairs import LEVELS, SQUARE, level_decay
from attnc.codegen.kernels.chunk import ChunkFacts, load_keys
from attnc.codegen.kernels.gradient.carry import load_outputs, output_tensors
from attnc.codegen.kernels.gradient.channel_sums import (
    channel_sum_arguments,
    load_slopes,
    store_channel_sums,
)
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import chain
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.value import load_value, map_value, value_axes, with_tensors

ROWS = ("BC", "BK")
CHUNK = value_axes(Axis("o_t", "row", guard="m_t", tile="BC"))


def dpairs_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """One program: dq, one head's share of dk and its log decays' gradients, of one chunk."""
    builder = GraphBuilder("dpairs")
    values = load_value(chunk.variant, chunk.algebra, CHUNK)
    load_keys(builder, chunk, SETUP)
    guard = join_guards("m_t[:, None]", chunk.v_mask)
    map_value(
        builder, chunk.algebra, values, chunk.printer, SETUP, ("BC", "BV"),
        source="b_vx", guard=guard,
    )  # fmt: skip
    load_outputs(builder, chunk, facts, SETUP)
    load_chunk_gates(builder, SETUP, total=True)
    _weights(builder, facts)
    _level(builder, decay=bool(facts.derivation.decay))
    _from_states(builder, chunk, facts)
    slopes = _log_decays(builder, facts)
    _store(builder, facts, "q")
    _store(builder, facts, "k")
    q, *others = output_tensors(facts)
    tensors = [q, *chunk.key_tensors(), *others, *slopes.tensors, gates_argument()]
    tensors += _states(chunk)
    tensors.append(TensorArgument("dq", (), "io", "[B, T, HQ, K]", written=True))
    layout = "[B, T, HQ, K]: shares of dk"
    tensors.append(TensorArgument("dkeys", (), "acc", layout, written=True))
    tensors += channel_sum_arguments(facts)
    scalars, constants = ("T", "HQ", "HKV", "HS", "NC"), ("K", "V", "BC", "BK", "BV", "FP")
    return Kernel(
        "dpairs", "", with_tensors(tuple(tensors), values), scalars, (*constants, "LEVELS"),
        builder.build(), loops=(LEVELS,),
    )  # fmt: skip


def _states(chunk: ChunkFacts) -> list[TensorArgument]:
    """The states on both sides of the chunk."""
    layout = "[B, HS, NC, FP, V]: states before chunks"
    found = [TensorArgument("carried", (), chunk.carried, layout)]
    layout = "[B, HQ, NC, FP, V]: gradients of states after chunks"
    found.append(TensorArgument("dcarried", (), chunk.carried, layout))
    if chunk.summed:
        found.append(TensorArgument("sums", (), "acc", "[B, HS, NC, FP]"))
        found.append(TensorArgument("dsums", (), "acc", "[B, HQ, NC, FP]"))
    return found


def _weights(builder: GraphBuilder, facts: GradientFacts) -> None:
    """The gradient of the weights, and what a token's own weight gives."""
    left = Operand("b_do", "b_do", ("BC", "BV"))
    right = Operand("b_v", "tl.trans(b_v)", ("BV", "BC"), transposed=True)
    builder.dot("b_dw", SETUP, SQUARE, left, right, note="gradient of the weights")
    if facts.summed:
        line = "b_dw = b_dw + b_d[:, None]"
        builder.map("b_dw", SETUP, SQUARE, line, name="normaliser", reads=("b_dw", "b_d"))
    own = "b_c = tl.sum(tl.where(r_c[:, None] == r_c[None, :], b_dw, 0.0), 1)"
    note = "a token with itself: no decay lies between"
    builder.map("b_c", SETUP, ("BC",), own, reads=("b_dw",), note=note)
    line = "b_ds = b_dw"
    builder.map("b_ds", SETUP, SQUARE, line, dtype="io", reads=("b_dw", "b_c"))
    for name, other in (("b_dq", "b_k"), ("b_dk", "b_q")):
        line = f"{name} = {other} * b_c[:, None]"
        builder.fold(name, SETUP, ROWS, line, reads=(other, "b_c"))
    if facts.derivation.decay:
        line = "b_r = tl.zeros([BC, BK], ACC)"
        note = "gradient of the exponents: what each row gained less what each key lost"
        builder.fold("b_r", SETUP, ROWS, line, note=note)


def _level(builder: GraphBuilder, *, decay: bool) -> None:
    """One level's pairs: from the later half of each block to the earlier one."""
    level_decay(builder)
    later = "b_qe = tl.where(m_l[:, None], b_q * b_e, 0.0)"
    earlier = "b_ke = tl.where(m_l[:, None], 0.0, b_k * b_e)"
    builder.map("b_qe", STEP, ROWS, later, dtype="io", reads=("b_q", "b_e"))
    builder.map("b_ke", STEP, ROWS, earlier, dtype="io", reads=("b_k", "b_e"))
    block = "b_dl = tl.where(r_b[:, None] == r_b[None, :], b_ds, 0.0)"
    note = "pairs of one block"
    builder.map("b_dl", STEP, SQUARE, block, dtype="io", reads=("b_ds", "r_b"), note=note)
    for name, text, other in (("b_x", "b_dl", "b_ke"), ("b_y", "tl.trans(b_dl)", "b_qe")):
        left = Operand("b_dl", text, SQUARE, transposed=text != "b_dl")
        right = Operand(other, other, ROWS)
        builder.dot(name, STEP, ROWS, left, right, note="[BC, BC] @ [BC, BK]")
    for name, line in (
        ("b_dq", "b_dq = b_dq + tl.where(m_l[:, None], b_x * b_e, 0.0)"),
        ("b_dk", "b_dk = b_dk + tl.where(m_l[:, None], 0.0, b_y * b_e)"),
        ("b_r", "b_r = b_r + b_qe * b_x - b_ke * b_y"),
    ):
        reads = (name, "b_x", "b_y", "b_e", "b_qe", "b_ke", "r_b")
        if name != "b_r" or decay:
            builder.fold(name, STEP, ROWS, line, name=f"fold {name}", reads=reads)


def _from_states(builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts) -> None:
    """Add what the state before the chunk gives its queries, and the one after it its keys."""
    builder.map("r_f0", FINISH, ("BK",), "r_f0 = tl.arange(0, BK)", dtype="i32")
    _load_state(builder, chunk, "b_h", "carried", "the state before the chunk")
    _load_state(builder, chunk, "b_j", "dcarried", "what the state after the chunk leads to")
    product = (("b_x", "b_do", "b_h"), ("b_y", "b_v", "b_j"))
    sums = (" + b_d[:, None] * b_z[None, :]", " + b_dz[None, :]")
    decays = ("b_g", "(b_gl[None, :] - b_g)")
    notes = ("decay from the chunk's start to each row", "decay from each key to the chunk's end")
    for side, (name, rows, state) in enumerate(product):
        total = ("b_dq", "b_dk")[side]
        right = Operand(
            state, f"tl.trans({chunk.carried_text(state)})", ("BV", "BK"), transposed=True
        )
        builder.dot(
            name, FINISH, ROWS, Operand(rows, rows, ("BC", "BV")), right, name=f"state {total}",
            note="[BC, BV] @ [BV, BK]",
        )  # fmt: skip
        value = f"({name}{sums[side]})" if chunk.summed else name
        line = f"{name} = {value} * tl.exp2({decays[side]}.to(ACC))"
        reads = (name, "b_g", "b_gl", "b_d", "b_z", "b_dz")
        builder.map(name, FINISH, ROWS, line, name=f"decay {total}", reads=reads, note=notes[side])
        line = f"{total} = {total} + {name}"
        builder.map(total, FINISH, ROWS, line, name=f"add {total}", reads=(total, name))
    if facts.derivation.decay:
        _exponents(builder, chunk)


def _exponents(builder: GraphBuilder, chunk: ChunkFacts) -> None:
    """Of pairs that the states are in between of: `b_r` by rows, `b_y` by keys, `b_a` across."""
    line = "b_r = b_r + b_q * b_x"
    builder.map("b_r", FINISH, ROWS, line, name="rows", reads=("b_r", "b_q", "b_x"))
    line = "b_y = b_k * b_y"
    builder.map("b_y", FINISH, ROWS, line, name="keys", reads=("b_y", "b_k", "b_dk"))
    across = ["b_a = tl.sum(b_h.to(ACC) * b_j.to(ACC), 1)"]
    across += ["b_a = b_a + b_z * b_dz"] if chunk.summed else []
    across.append("b_a = b_a * tl.exp2(b_gl.to(ACC))")
    note = "pairs from before the chunk to after it"
    reads = ("b_h", "b_j", "b_z", "b_dz", "b_gl")
    builder.map("b_a", FINISH, ("BK",), *across, reads=reads, note=note)


def _load_state(
    builder: GraphBuilder, chunk: ChunkFacts, buffer: str, tensor: str, note: str
) -> None:
    """A state of the chunk, and its sums: `b_z` of the one before it, `b_dz` of the other."""
    head = "(i_b * HQ + i_h)" if tensor == "dcarried" else "(i_b * HS + i_hs)"
    place = f"({head} * NC + i_c) * FP"
    builder.load(
        buffer, FINISH, ("BK", "BV"), dtype=chunk.carried, tensor=tensor, note=note,
        lines=(f"p_{tensor} = {tensor} + {place} * V",), reads=("r_f0",), guard=chunk.v_mask,
        address=f"p_{tensor} + r_f0[:, None] * V + o_v[None, :]",
    )  # fmt: skip
    if chunk.summed:
        name, sums = ("b_dz", "dsums") if tensor == "dcarried" else ("b_z", "sums")
        builder.load(
            name, FINISH, ("BK",), tensor=sums, address=f"{sums} + {place} + r_f0",
            reads=("r_f0",),
        )  # fmt: skip


def _log_decays(builder: GraphBuilder, facts: GradientFacts) -> Loaded:
    """Each token's log decays: they lie between the pairs j < t <= i, in the chunk and beyond."""
    if not facts.derivation.decay:
        return Loaded((), {}, ())
    lines = (
        "b_dg = tl.sum(b_r, 0)[None, :] - tl.cumsum(b_r, 0) + b_r",
        "b_dg = b_dg + tl.cumsum(b_y, 0) - b_y + b_a[None, :]",
    )
    note = "gradient of each token's log decays: of all pairs that it lies between"
    builder.map("b_dg", FINISH, ROWS, *lines, reads=("b_r", "b_y", "b_a"), note=note)
    loaded = load_slopes(builder, facts, FINISH)
    store_channel_sums(
        builder, facts, FINISH, loaded.bindings, tokens=facts.tokens, tile="i_c", tiles="NC"
    )
    return loaded


def _store(builder: GraphBuilder, facts: GradientFacts, name: str) -> None:
    """Store dq, or one head's share of dk, through phi."""
    total = f"b_d{name}"
    guard = join_guards("m_t[:, None]", "m_k[None, :]")
    if facts.derivation.phi_slope is not None:
        place = f"p_{name}t + r_c[:, None] * stride_{name}_t + o_k[None, :] * stride_{name}_k"
        builder.load(
            f"b_{name}x", FINISH, ROWS, tensor=name, dtype="io", address=place, guard=guard
        )
        chain(builder, facts, FINISH, ROWS, total, f"b_{name}x")
    tensor = "dq" if name == "q" else "dkeys"
    value = f"{total}.to(dq.dtype.element_ty)" if name == "q" else total
    builder.store(
        FINISH, ROWS, value, name=f"store {tensor}", reads=(total,), tensor=tensor, guard=guard,
        address=f"{tensor} + ((i_b * T + o_t) * HQ + i_h)[:, None] * K + o_k[None, :]",
        note="[BC, BK]",
    )  # fmt: skip
