"""The `dvalue` pass where every channel decays by itself: dv of one chunk, from weights kept."""

from __future__ import annotations

from attnc.codegen.graph import SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_gates import gates_argument, load_chunk_gates
from attnc.codegen.kernels.channel_pairs import SQUARE, pairs_argument
from attnc.codegen.kernels.chunk import ChunkFacts, load_keys, load_rows
from attnc.codegen.kernels.gradient.carry import load_outputs, output_tensors
from attnc.codegen.kernels.gradient.chunk_gradient import (
    CONSTANTS,
    GROUP,
    SCALARS,
    start_accumulator,
    store_columns,
)
from attnc.codegen.kernels.gradient.facts import HEAD_OF_GROUP, GradientFacts
from attnc.codegen.kernels.gradient.value_gradient import (
    finish_value,
    start_value,
    value_accumulator,
    value_arguments,
)
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.value import CHUNK_OF_GROUP, load_value, setup_nodes, with_tensors


def channel_dvalue_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """One program: dv of one chunk of one key/value head, over the query heads that read it."""
    builder = GraphBuilder("dvalue")
    load_rows(builder, chunk, "k", SETUP)
    values = load_value(chunk.variant, chunk.algebra, CHUNK_OF_GROUP)
    setup_nodes(builder, values)
    if chunk.algebra.value is not None:
        load_keys(builder, chunk, SETUP, keys=False)
    start_accumulator(builder, "dv", "BV")
    lines = [
        HEAD_OF_GROUP,
        "p_do = do + i_b * stride_do_b + i_h * stride_do_h",
        f"p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * {chunk.tokens} * K",
        *([f"p_norm = norm + (i_b * HQ + i_h) * {chunk.tokens}"] if chunk.summed else []),
    ]
    builder.map("p_gates", STEP, (), *lines, name="head")
    builder.extend(node for node in values.nodes if node.region == STEP)
    start_value(builder, facts, STEP, "BC")
    load_outputs(builder, chunk, facts, queries=False, delta=False)
    load_chunk_gates(builder, STEP, total=True)
    total = value_accumulator(facts)
    builder.load(
        "b_p", STEP, SQUARE, dtype="io", tensor="pairs", guard="m_t[None, :]",
        lines=(f"p_pairs = pairs + ((i_b * HQ + i_h) * {chunk.tokens} + o_t) * BC",),
        reads=("p_gates",), address="p_pairs[None, :] + r_c[:, None]",
        note="weights inside the chunk, keys by queries",
    )  # fmt: skip
    columns = ("BC", "BV")
    right = Operand("b_do", "b_do", columns)
    builder.dot(
        total, STEP, columns, Operand("b_p", "b_p", SQUARE), right, name="inside dv", into=total,
        carried=True, note="[BC, BC] @ [BC, BV]",
    )  # fmt: skip
    lines = ["b_u = tl.exp2((b_gl[None, :] - b_g).to(ACC))", "b_ku = b_k * b_u"]
    note = "decay from each key to the chunk's end"
    reads = ("b_k", "b_g", "b_gl")
    builder.map("b_ku", STEP, ("BC", "BK"), *lines, dtype="io", reads=reads, note=note)
    lines = ["r_f0 = tl.arange(0, BK)"]
    lines.append("p_dcarried = dcarried + ((i_b * HQ + i_h) * NC + i_c) * FP * V")
    builder.load(
        "b_j", STEP, ("BK", "BV"), dtype=chunk.carried, tensor="dcarried", lines=tuple(lines),
        address="p_dcarried + r_f0[:, None] * V + o_v[None, :]", guard=chunk.v_mask,
        note="what the state after the chunk leads to", reads=("p_gates",),
    )  # fmt: skip
    left = Operand("b_ku", "b_ku", ("BC", "BK"))
    right = Operand("b_j", chunk.carried_text("b_j"), ("BK", "BV"))
    builder.dot(
        total, STEP, columns, left, right, name="state dv", into=total, carried=True,
        note="[BC, BK] @ [BK, BV]",
    )  # fmt: skip
    finish_value(builder, facts, values, STEP, "BC", token="o_t", guard="m_t", tokens=facts.tokens)
    store_columns(builder, "dv", "BV", "V", "o_v", join_guards("m_t[:, None]", chunk.v_mask))
    _, do, *others = output_tensors(facts)
    k, v = chunk.key_tensors()
    layout = "[B, HQ, NC, FP, V]: gradients of states after chunks"
    tensors = (
        *((k,) if chunk.algebra.value is None else (k, v)),
        do,
        *others[:1],
        gates_argument(),
        pairs_argument(),
        TensorArgument("dcarried", (), chunk.carried, layout),
        TensorArgument("dv", (), "io", "[B, T, HKV, V]", written=True),
        *value_arguments(facts),
    )
    graph = builder.build()
    return Kernel(
        "dvalue", "", with_tensors(tensors, values), SCALARS, CONSTANTS, graph, (), (GROUP,)
    )
