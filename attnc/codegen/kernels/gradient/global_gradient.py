"""The `dquery`, `dkey` and `dvalue` passes where every query sees every key: one state serves all.

No pair is ever formed: queries meet the sum over all keys, keys and values the gradient of that
sum, folded over all queries. Source: Katharopoulos et al. (arXiv 2006.16236), equations 5 and 6.
"""

from __future__ import annotations

from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import ChunkFacts, load_keys, load_rows, value_setup
from attnc.codegen.kernels.gradient.carry import load_outputs, output_tensors
from attnc.codegen.kernels.gradient.chunk_gradient import (
    CONSTANTS,
    GROUP,
    head_values,
    start_accumulator,
    store_columns,
    store_keys,
    store_queries,
)
from attnc.codegen.kernels.gradient.facts import HEAD_OF_GROUP, GradientFacts
from attnc.codegen.kernels.gradient.state_terms import (
    dkey_from_state,
    dvalue_from_state,
    from_state_before,
)
from attnc.codegen.kernels.gradient.value_gradient import (
    finish_value,
    start_value,
    value_accumulator,
    value_arguments,
)
from attnc.codegen.kernels.monomials import selection_nodes
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.value import CHUNK_OF_GROUP, with_tensors

SCALARS = ("T", "HQ", "HKV", "HS")


def global_dquery_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dq of one chunk, from the sum over all keys."""
    builder = GraphBuilder("dquery")
    builder.extend(selection_nodes(chunk.features, weights=True))
    queries = not chunk.features.direct
    lines = [
        "p_q = q + i_b * stride_q_b + i_h * stride_q_h",
        "p_do = do + i_b * stride_do_b + i_h * stride_do_h",
    ]
    if chunk.summed:
        place = f"(i_b * HQ + i_h) * {chunk.tokens}"
        lines += [f"p_{row} = {row} + {place}" for row in ("norm", "delta")]
    _head(builder, "i_hs = i_h // (HQ // HS)", *lines)
    load_outputs(builder, chunk, facts, queries=queries)
    builder.map("b_dq", STEP, ("BC", "BK"), "b_dq = tl.zeros([BC, BK], ACC)", reads=("p_q",))
    from_state_before(builder, chunk, facts)
    store_queries(builder, chunk, facts, loaded=queries)
    q, *others = output_tensors(facts)
    tensors = (
        q, *others, *chunk.tables(weights=True),
        TensorArgument("carried", (), "acc", "[B, HS, SLOT]: the sum over all keys"),
        TensorArgument("dq", (), "io", "[B, T, HQ, K]", written=True),
    )  # fmt: skip
    return Kernel("dquery", "", tensors, SCALARS, CONSTANTS, builder.build(), (), (GROUP,))


def global_dkey_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk of one chunk, from the gradient of the sum."""
    builder = GraphBuilder("dkey")
    builder.extend(selection_nodes(chunk.features, weights=False))
    keys = not chunk.features.direct
    load_keys(builder, chunk, SETUP, keys=keys)
    values = value_setup(builder, chunk, CHUNK_OF_GROUP)
    start_accumulator(builder, "dk", "BK")
    _head(builder)
    head_values(builder, chunk, values)
    dkey_from_state(builder, chunk, facts)
    store_keys(builder, chunk, facts, loaded=keys)
    tensors = (
        *chunk.key_tensors(), *chunk.tables(weights=False), _DCARRIED,
        TensorArgument("dk", (), "io", "[B, T, HKV, K]", written=True),
    )  # fmt: skip
    tensors = with_tensors(tensors, values)
    return Kernel("dkey", "", tensors, SCALARS, CONSTANTS, builder.build(), (), (GROUP,))


def global_dvalue_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dv of one chunk, from the gradient of the sum."""
    builder = GraphBuilder("dvalue")
    builder.extend(selection_nodes(chunk.features, weights=False))
    load_rows(builder, chunk, "k", SETUP)
    values = value_setup(builder, chunk, CHUNK_OF_GROUP)
    valued = chunk.algebra.value is not None
    if valued:
        load_keys(builder, chunk, SETUP, keys=False)
    start_accumulator(builder, "dv", "BV")
    _head(builder)
    builder.extend(node for node in values.nodes if node.region == STEP)
    start_value(builder, facts, STEP, "BC")
    dvalue_from_state(builder, chunk, value_accumulator(facts))
    finish_value(builder, facts, values, STEP, "BC", token="o_t", guard="m_t", tokens=facts.tokens)
    store_columns(builder, "dv", "BV", "V", "o_v", join_guards("m_t[:, None]", chunk.v_mask))
    k, v = chunk.key_tensors()
    tensors = (
        *((k, v) if valued else (k,)), *chunk.tables(weights=False), _DCARRIED,
        TensorArgument("dv", (), "io", "[B, T, HKV, V]", written=True),
        *value_arguments(facts),
    )  # fmt: skip
    tensors = with_tensors(tensors, values)
    return Kernel("dvalue", "", tensors, SCALARS, CONSTANTS, builder.build(), (), (GROUP,))


_DCARRIED = TensorArgument("dcarried", (), "acc", "[B, HQ, SLOT]: gradient of the sum")


def _head(builder: GraphBuilder, *lines: str) -> None:
    head = HEAD_OF_GROUP
    builder.map("p_q", STEP, (), head, *lines, name="head")
