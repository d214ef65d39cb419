"""The walks: one program goes through the chunks of a segment in order, its state in registers.

`walk_dq` goes forward with the state before each chunk, and leaves dq; the others go back with the
gradient of the state after it, and leave dk and dv, both at once (`walk_dkv`) or one each, where
both would not stand in registers. No state of a chunk goes through memory: between segments they
come from `state` and `dstate`, and with one segment a head from nowhere. Every query head writes
dk and dv of its own, which the launcher adds up over a group.
Source: Lightning Attention-2 (arXiv 2401.04658), algorithm 2, for any polynomial weight.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import (
    CHUNKS,
    CONSTANTS,
    KEYS,
    QUERIES,
    SCALARS,
    ChunkFacts,
    decay_setup,
    decay_step,
    load_keys,
    load_rows,
)
from attnc.codegen.kernels.gradient.carry import BACK, load_outputs, output_tensors, slots
from attnc.codegen.kernels.gradient.chunk_pairs import SQUARE, pairs_inside, row_gradients
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import chain
from attnc.codegen.kernels.gradient.state_terms import (
    decayed_keys,
    decayed_outputs,
    decayed_values,
    key_terms,
    query_terms,
    value_term,
)
from attnc.codegen.kernels.monomials import selection_nodes, tile_nodes
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.state_fold import decay_value, fold_tile, load_state
from attnc.codegen.tile_range import KeyLoop

WALKS = ("walk_dq", "walk_dkv", "walk_dk", "walk_dv")


def why_no_walk(facts: GradientFacts) -> str:
    """Why no program walks; empty where walks compute all that is wanted."""
    if facts.algebra.global_sum:
        return "one state serves every query: there is nothing to walk"
    if facts.algebra.by_channel:
        return "a decay a channel is cut apart at levels of a chunk, in a pass of its own"
    if facts.derivation.decay:
        return "the gradient of a decay reads the states on both sides of a chunk"
    if facts.algebra.value is not None:
        return "a declared value has gradients of its own"
    return ""


def walk_dq_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dq of one segment of one query head: BK columns of it, where features are channels."""
    builder = GraphBuilder("walk_dq")
    loaded = decay_setup(builder, chunk)
    load_state(builder, chunk)
    scores = not facts.algebra.direct
    load_keys(builder, chunk)
    load_outputs(builder, chunk, facts, queries=scores)
    decay_step(builder, chunk, loaded)
    pairs_inside(builder, facts, values=False)
    row_gradients(builder, facts)
    outputs = decayed_outputs(builder, chunk, facts)
    decay_value(builder, chunk, KEYS)
    for n in range(len(chunk.features.tiles)):
        builder.extend(selection_nodes(chunk.features, weights=True, only=n, region=STEP))
        query_terms(builder, chunk, facts, n, outputs)
        if not chunk.features.direct:
            nodes = tile_nodes(chunk.features, n, "b_k", "b_f", rows="BC", weighted=False)
            builder.extend(nodes)
        fold_tile(builder, chunk, n, KEYS)
    _store(builder, chunk, facts, "q", loaded=scores)
    slope = facts.derivation.phi_slope is not None
    q, *others = output_tensors(facts)
    tensors = [*([q] if scores or slope else []), *chunk.key_tensors(), *others]
    return _kernel(builder, chunk, tensors, loaded, "q", CHUNKS)


def walk_dkv_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk and dv of one segment of one query head."""
    return _back(chunk, facts, "walk_dkv", keys=True, values=True)


def walk_dk_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk of one segment of one query head: BK columns of it, where features are channels."""
    return _back(chunk, facts, "walk_dk", keys=True, values=False)


def walk_dv_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """BV columns of dv of one segment of one query head."""
    return _back(chunk, facts, "walk_dv", keys=False, values=True)


def _back(
    chunk: ChunkFacts, facts: GradientFacts, name: str, *, keys: bool, values: bool
) -> Kernel:
    builder = GraphBuilder(name)
    loaded = decay_setup(builder, chunk)
    load_state(builder, chunk, note="what the state after this segment leads to", sums=keys)
    # a linear weight's dk reads no key, but through a feature map
    rows = values or not facts.algebra.direct
    if rows:
        load_rows(builder, chunk, "k")
    if keys:
        load_keys(builder, chunk, keys=False)
    load_outputs(builder, chunk, facts, delta=keys)
    decay_step(builder, chunk, loaded)
    pairs_inside(builder, facts, values=values, scores=keys)
    if keys:
        _inside(builder, "dk", "b_ds", "b_q", "BK")
    if values:
        _inside(builder, "dv", "b_p", "b_do", "BV")
    ends = decayed_values(builder, chunk) if keys else ""
    decayed = decayed_keys(builder, chunk, known=keys) if values else ""
    decay_value(builder, chunk, QUERIES)
    for n in range(len(chunk.features.tiles)):
        builder.extend(selection_nodes(chunk.features, weights=True, only=n, region=STEP))
        if keys:
            key_terms(builder, chunk, facts, n, ends, feature=values)
        if values:
            value_term(builder, chunk, n, "b_dv", decayed, made=keys)
        if not chunk.features.direct:
            nodes = tile_nodes(chunk.features, n, "b_q", "b_p", rows="BC", weighted=True)
            builder.extend(nodes)
        fold_tile(builder, chunk, n, QUERIES, sums=keys)
    if keys:
        _store(builder, chunk, facts, "k", loaded=rows)
    if values:
        _store(builder, chunk, facts, "v", loaded=True)
    k, v = chunk.key_tensors()
    slope = keys and facts.derivation.phi_slope is not None
    q, do, *others = output_tensors(facts)
    tensors = [q, *([k] if rows or slope else []), *([v] if keys else []), do]
    tensors += others if keys else others[:1]
    written = ("k" if keys else "") + ("v" if values else "")
    return _kernel(builder, chunk, tensors, loaded, written, BACK)


def _inside(builder: GraphBuilder, name: str, tile: str, other: str, column: str) -> None:
    left = Operand(tile, f"{tile}.to({other}.dtype)", SQUARE)
    builder.dot(
        f"b_{name}", STEP, ("BC", column), left, Operand(other, other, ("BC", column)),
        name=f"inside {name}", note=f"[BC, BC] @ [BC, {column}]",
    )  # fmt: skip


def _store(
    builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts, name: str, *, loaded: bool
) -> None:
    """Store the gradient of q, k or v, through phi; `loaded` says whether it was loaded before."""
    columns, mask = ("V", chunk.v_mask) if name == "v" else ("K", chunk.k_mask)
    letter, column = f"B{columns}", f"o_{columns.lower()}"
    shape, guard = ("BC", letter), join_guards("m_t[:, None]", mask)
    if name != "v" and facts.derivation.phi_slope is not None:
        start = f"p_{name}t = p_{name} + tl.cast(i_c * BC, tl.int64) * stride_{name}_t"
        place = f"p_{name}t + r_c[:, None] * stride_{name}_t + o_k[None, :] * stride_{name}_k"
        builder.load(
            f"b_{name}x", STEP, shape, tensor=name, dtype="io", address=place, guard=guard,
            lines=() if loaded else (start,),
        )  # fmt: skip
        chain(builder, facts, STEP, shape, f"b_d{name}", f"b_{name}x")
    start = f"p_d{name}t = p_d{name} + tl.cast(i_c * BC, tl.int64) * HQ * {columns}"
    builder.store(
        STEP, shape, start, f"b_d{name}.to(d{name}.dtype.element_ty)", name=f"store d{name}",
        reads=(f"b_d{name}",), tensor=f"d{name}", guard=guard, note=f"[BC, {letter}]",
        address=f"p_d{name}t + r_c[:, None] * HQ * {columns} + {column}[None, :]",
    )  # fmt: skip


def _kernel(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    tensors: Iterable[TensorArgument],
    loaded: Loaded,
    written: str,
    loop: KeyLoop,
) -> Kernel:
    back = loop is BACK
    layout = slots("HQ" if back else "HS", "NS", chunk)
    found = [*tensors, *loaded.tensors, *chunk.tables(weights=True)]
    found.append(TensorArgument("states", (), "acc", layout))
    for name in written:
        layout = f"[B, T, HQ, {'V' if name == 'v' else 'K'}]"
        found.append(TensorArgument(f"d{name}", (), "io", layout, written=True))
    graph = builder.build()
    return Kernel(builder.kernel, "", tuple(found), SCALARS, CONSTANTS, graph, (), (loop,))
