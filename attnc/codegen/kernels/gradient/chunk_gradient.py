"""The `dquery`, `dkey` and `dvalue` passes: one chunk of one key/value head, from its states.

Inside the chunk pairs go by the polynomial of s and its derivative, as in the parallel form; the
state before the chunk reaches its queries, and the gradient of the state after it its keys and
values. A pass a gradient computes some pairs twice and keeps a third as much in registers.
Heads of a group are summed in order, in registers.
Source: Lightning Attention-2 (arXiv 2401.04658), algorithm 2, for any polynomial weight.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import (
    TOKEN_AXES,
    ChunkFacts,
    decay_setup,
    decay_step,
    load_keys,
    load_rows,
    value_setup,
)
from attnc.codegen.kernels.gradient.carry import load_outputs, output_tensors
from attnc.codegen.kernels.gradient.chunk_pairs import (
    SQUARE,
    key_exponents,
    pairs_inside,
    row_gradients,
)
from attnc.codegen.kernels.gradient.facts import HEAD_OF_GROUP, GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import chain
from attnc.codegen.kernels.gradient.state_terms import (
    dkey_from_state,
    dvalue_from_state,
    from_state_before,
)
from attnc.codegen.kernels.gradient.token_sums import (
    add_token_sums,
    start_token_sums,
    store_token_sums,
    token_arguments,
)
from attnc.codegen.kernels.gradient.value_gradient import (
    finish_value,
    start_value,
    value_accumulator,
    value_arguments,
)
from attnc.codegen.kernels.monomials import selection_nodes
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.value import CHUNK_OF_GROUP, map_value, with_tensors
from attnc.codegen.tile_range import KeyLoop

GROUP = KeyLoop("0", "HQ // HKV", True, "the query heads that read this key/value head")
SCALARS = ("T", "HQ", "HKV", "HS", "NC")
CONSTANTS = ("K", "V", "BC", "BK", "BV", "FP")
# every query head has a decay of its own: what is loaded for it stands in the loop over heads
HEAD_AXES = {
    letter: replace(axis, region=STEP if letter in {"h", "t"} else SETUP)
    for letter, axis in TOKEN_AXES.items()
}


def dquery_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dq of one chunk; where a decay has a gradient, what each row's exponents gained."""
    builder = GraphBuilder("dquery")
    builder.extend(selection_nodes(chunk.features, weights=True))
    load_keys(builder, chunk, SETUP)
    values = value_setup(builder, chunk, CHUNK_OF_GROUP)
    reads_queries = _needs_scores(facts) or facts.derivation.phi_slope is not None
    loaded = _head(builder, chunk, states=True, queries=reads_queries)
    queries = _needs_scores(facts)
    head_values(builder, chunk, values)
    load_outputs(builder, chunk, facts, queries=queries)
    decay_step(builder, chunk, loaded, total=False)
    pairs_inside(builder, facts, values=bool(facts.derivation.decay))
    row_gradients(builder, facts)
    from_state_before(builder, chunk, facts)
    if facts.derivation.decay:
        builder.store(
            STEP, ("BC",), "b_r", name="store drows", reads=("b_r",), tensor="drows",
            address=f"drows + (i_b * HQ + i_h) * {facts.tokens} + o_t", guard="m_t",
        )  # fmt: skip
    store_queries(builder, chunk, facts, loaded=queries)
    q, *others = output_tensors(facts)
    tensors = [q, *chunk.key_tensors(), *others, *loaded.tensors, *chunk.tables(weights=True)]
    tensors += _states(chunk, before=True, after=False)
    tensors.append(TensorArgument("dq", (), "io", "[B, T, HQ, K]", written=True))
    if facts.derivation.decay:
        tensors.append(TensorArgument("drows", (), "acc", "[B, HQ, T]: exponents", written=True))
    graph = builder.build()
    return Kernel(
        "dquery", "", with_tensors(tuple(tensors), values), SCALARS, CONSTANTS, graph, (), (GROUP,)
    )


def _needs_scores(facts: GradientFacts) -> bool:
    """Whether dq depends on q, and dk on k: a linear weight's do not, but through a feature map."""
    return not facts.algebra.direct or bool(facts.derivation.decay)


def dkey_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk and the decays' gradients of one chunk."""
    decayed = bool(facts.derivation.decay)
    builder = GraphBuilder("dkey")
    builder.extend(selection_nodes(chunk.features, weights=False))
    keys = _needs_scores(facts)
    load_keys(builder, chunk, SETUP, keys=keys)
    values = value_setup(builder, chunk, CHUNK_OF_GROUP)
    start_accumulator(builder, "dk", "BK")
    loaded = _head(builder, chunk, states=decayed)
    head_values(builder, chunk, values)
    load_outputs(builder, chunk, facts)
    decay_step(builder, chunk, loaded)
    pairs_inside(builder, facts, values=decayed)
    key_exponents(builder, facts)
    _fold(builder, "dk", "b_ds", "b_q", "BK")
    dkey_from_state(builder, chunk, facts)
    _decays(builder, facts, loaded)
    store_keys(builder, chunk, facts, loaded=keys)
    q, *others = output_tensors(facts)
    tensors = [q, *chunk.key_tensors(), *others, *loaded.tensors, *chunk.tables(weights=False)]
    tensors += _states(chunk, before=decayed, after=True)
    if decayed:
        tensors.append(TensorArgument("drows", (), "acc", "[B, HQ, T]: exponents"))
    tensors.append(TensorArgument("dk", (), "io", "[B, T, HKV, K]", written=True))
    tensors += token_arguments(facts)
    graph = builder.build()
    return Kernel(
        "dkey", "", with_tensors(tuple(tensors), values), SCALARS, CONSTANTS, graph, (), (GROUP,)
    )


def dvalue_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dv of one chunk."""
    builder = GraphBuilder("dvalue")
    builder.extend(selection_nodes(chunk.features, weights=False))
    load_rows(builder, chunk, "k", SETUP)
    values = value_setup(builder, chunk, CHUNK_OF_GROUP)
    if chunk.algebra.value is not None:
        load_keys(builder, chunk, SETUP, keys=False)
    start_accumulator(builder, "dv", "BV")
    loaded = _head(builder, chunk, states=False, delta=False)
    builder.extend(node for node in values.nodes if node.region == STEP)
    start_value(builder, facts, STEP, "BC")
    load_outputs(builder, chunk, facts, delta=False)
    decay_step(builder, chunk, loaded)
    pairs_inside(builder, facts, values=True, scores=False)
    total = value_accumulator(facts)
    _fold(builder, total.removeprefix("b_"), "b_p", "b_do", "BV")
    dvalue_from_state(builder, chunk, total)
    finish_value(builder, facts, values, STEP, "BC", token="o_t", guard="m_t", tokens=facts.tokens)
    store_columns(builder, "dv", "BV", "V", "o_v", join_guards("m_t[:, None]", chunk.v_mask))
    q, do, *others = output_tensors(facts)
    k, v = chunk.key_tensors()
    keys = [k] if chunk.algebra.value is None else [k, v]
    tensors = [q, *keys, do, *others[:1], *loaded.tensors, *chunk.tables(weights=False)]
    dcarried, *_ = _states(chunk, before=False, after=True)
    tensors.append(dcarried)
    tensors.append(TensorArgument("dv", (), "io", "[B, T, HKV, V]", written=True))
    tensors += value_arguments(facts)
    graph = builder.build()
    return Kernel(
        "dvalue", "", with_tensors(tuple(tensors), values), SCALARS, CONSTANTS, graph, (), (GROUP,)
    )


def head_values(builder: GraphBuilder, chunk: ChunkFacts, values: Loaded) -> None:
    """The declared value of this head, of the chunk's raw v."""
    guard = join_guards("m_t[:, None]", chunk.v_mask)
    map_value(
        builder, chunk.algebra, values, chunk.printer, STEP, ("BC", "BV"),
        source="b_vx", guard=guard,
    )  # fmt: skip


def start_accumulator(builder: GraphBuilder, name: str, column: str) -> None:
    """An empty dk or dv, before the heads of the group."""
    line = f"b_{name} = tl.zeros([BC, {column}], ACC)"
    builder.fold(f"b_{name}", SETUP, ("BC", column), line, note=f"{name} of the chunk")


def _states(chunk: ChunkFacts, *, before: bool, after: bool) -> list[TensorArgument]:
    found: list[TensorArgument] = []
    if before:
        layout = "[B, HS, NC, FP, V]: states before chunks"
        found.append(TensorArgument("carried", (), chunk.carried, layout))
        if chunk.summed:
            found.append(TensorArgument("sums", (), "acc", "[B, HS, NC, FP]"))
    if after:
        layout = "[B, HQ, NC, FP, V]: gradients of states after chunks"
        found.append(TensorArgument("dcarried", (), chunk.carried, layout))
        if chunk.summed:
            found.append(TensorArgument("dsums", (), "acc", "[B, HQ, NC, FP]"))
    return found


def _head(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    *,
    states: bool,
    queries: bool = True,
    delta: bool = True,
) -> Loaded:
    lines = [
        HEAD_OF_GROUP,
        *(["i_hs = i_h // (HQ // HS)"] if states else []),
        *(["p_q = q + i_b * stride_q_b + i_h * stride_q_h"] if queries else []),
        "p_do = do + i_b * stride_do_b + i_h * stride_do_h",
    ]
    if chunk.summed:
        lines.append(f"p_norm = norm + (i_b * HQ + i_h) * {chunk.tokens}")
        if delta:
            lines.append(f"p_delta = delta + (i_b * HQ + i_h) * {chunk.tokens}")
    builder.map("p_q", STEP, (), *lines, name="head")
    return decay_setup(builder, chunk, HEAD_AXES, STEP)


def _fold(builder: GraphBuilder, name: str, tile: str, other: str, column: str) -> None:
    left = Operand(tile, f"{tile}.to({other}.dtype)", SQUARE)
    builder.dot(
        f"b_{name}", STEP, ("BC", column), left, Operand(other, other, ("BC", column)),
        name=f"inside {name}", into=f"b_{name}", carried=True,
        note=f"[BC, BC] @ [BC, {column}]",
    )  # fmt: skip


def _decays(builder: GraphBuilder, facts: GradientFacts, loaded: Loaded) -> None:
    """Each token's log decay: it lies between the pairs j < t <= i, inside the chunk and beyond."""
    if not facts.derivation.decay:
        return
    lines = (
        "b_dg = tl.sum(b_r, 0) - tl.cumsum(b_r, 0) + b_r",
        "b_dg = b_dg + tl.cumsum(b_cj, 0) - b_cj + b_dd",
    )
    reads = ("b_r", "b_cj", "b_dd", "b_dg")
    note = "gradient of each token's log decay: of all pairs that it lies between"
    builder.map("b_dg", STEP, ("BC",), *lines, name="gates", reads=reads, note=note)
    start_token_sums(builder, facts, STEP)
    add_token_sums(builder, facts, loaded.bindings, tokens=facts.tokens)
    store_token_sums(builder, facts, STEP, tile="i_c", tiles="NC")


def store_queries(
    builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts, *, loaded: bool
) -> None:
    """Store dq of the head, through phi; `loaded` says whether q was loaded before."""
    shape = ("BC", "BK")
    guard = join_guards("m_t[:, None]", chunk.k_mask)
    if facts.derivation.phi_slope is not None:
        place = "p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k"
        start = "p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t"
        builder.load(
            "b_qx", STEP, shape, tensor="q", dtype="io", address=place, guard=guard,
            lines=() if loaded else (start,),
        )  # fmt: skip
        chain(builder, facts, STEP, shape, "b_dq", "b_qx")
    builder.store(
        STEP, shape, "b_dq.to(dq.dtype.element_ty)", name="store dq", reads=("b_dq",),
        tensor="dq", guard=guard, note="[BC, BK]",
        address="dq + ((i_b * T + o_t) * HQ + i_h)[:, None] * K + o_k[None, :]",
    )  # fmt: skip


def store_keys(
    builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts, *, loaded: bool
) -> None:
    """Store dk of the group, through phi; `loaded` says whether k was loaded before."""
    shape = ("BC", "BK")
    guard = join_guards("m_t[:, None]", chunk.k_mask)
    if facts.derivation.phi_slope is not None:
        place = "p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k"
        start = "p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t"
        builder.load(
            "b_kx", FINISH, shape, tensor="k", dtype="io", address=place, guard=guard,
            lines=() if loaded else (start,),
        )  # fmt: skip
        chain(builder, facts, FINISH, shape, "b_dk", "b_kx")
    store_columns(builder, "dk", "BK", "K", "o_k", guard)


def store_columns(
    builder: GraphBuilder, name: str, tile: str, columns: str, column: str, guard: str
) -> None:
    """Store dk or dv of the group."""
    row = "((i_b * T + o_t) * HKV + i_hkv)[:, None]"
    builder.store(
        FINISH, ("BC", tile), f"b_{name}.to({name}.dtype.element_ty)", name=f"store {name}",
        reads=(f"b_{name}",), tensor=name, guard=guard, note=f"[BC, {tile}]",
        address=f"{name} + {row} * {columns} + {column}[None, :]",
    )  # fmt: skip
