"""The passes that fold states for the backward.

`dstate` folds every segment's queries back from zero, as `state` folds its keys forward; `carry`
and `dcarry` fold each segment once more from what came before it, or after it, and keep the state
at every chunk, so that the `dchunk` pass runs all chunks at once.
Source: Lightning Attention-2 (arXiv 2401.04658), algorithm 2, over segments.
"""

from __future__ import annotations

from attnc.codegen.graph import STEP, GraphBuilder
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
    value_setup,
)
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.rows import scale_outputs
from attnc.codegen.kernels.monomials import column_text, feature_nodes, selection_nodes
from attnc.codegen.kernels.operand import join_guards, load_tile
from attnc.codegen.kernels.state import store_state
from attnc.codegen.kernels.state_fold import fold_state, load_state, start_state
from attnc.codegen.kernels.value import with_tensors
from attnc.codegen.tile_range import KeyLoop

BACK = KeyLoop("last - 1", "first - 1", True, "the chunks of this segment, the last one first")


def dstate_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """One program: BV columns of one segment of one query head."""
    builder = GraphBuilder("dstate")
    loaded = decay_setup(builder, chunk)
    builder.extend(selection_nodes(chunk.features, weights=True))
    start_state(builder, chunk)
    load_outputs(builder, chunk, facts)
    decay_step(builder, chunk, loaded)
    builder.extend(feature_nodes(chunk.features, "b_q", "b_p", weighted=True))
    fold_state(builder, chunk, QUERIES)
    store_state(builder, chunk)
    states = TensorArgument("states", (), "acc", slots("HQ", "NS", chunk), written=True)
    tensors = (*output_tensors(facts), *loaded.tensors, *chunk.tables(weights=True), states)
    return Kernel("dstate", "", tensors, SCALARS, CONSTANTS, builder.build(), (), (BACK,))


def carry_kernel(chunk: ChunkFacts) -> Kernel:
    """Forward: the state before every chunk, by state heads."""
    builder = GraphBuilder("carry")
    loaded = decay_setup(builder, chunk)
    builder.extend(selection_nodes(chunk.features, weights=False))
    values = value_setup(builder, chunk)
    load_state(builder, chunk)
    load_keys(builder, chunk, values=values)
    decay_step(builder, chunk, loaded)
    _store_carried(builder, chunk)
    builder.extend(feature_nodes(chunk.features, "b_k", "b_f"))
    fold_state(builder, chunk, KEYS)
    states = TensorArgument("states", (), "acc", slots("HS", "NS", chunk))
    tensors = (
        *chunk.key_tensors(),
        *loaded.tensors,
        *chunk.tables(weights=False),
        states,
        *carried_arguments(chunk, "HS"),
    )
    tensors = with_tensors(tensors, values)
    return Kernel("carry", "", tensors, (*SCALARS, "NC"), CONSTANTS, builder.build(), (), (CHUNKS,))


def dcarry_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """Backward: the gradient of the state after every chunk, by query heads."""
    builder = GraphBuilder("dcarry")
    loaded = decay_setup(builder, chunk)
    builder.extend(selection_nodes(chunk.features, weights=True))
    load_state(builder, chunk)
    load_outputs(builder, chunk, facts)
    decay_step(builder, chunk, loaded)
    _store_carried(builder, chunk)
    builder.extend(feature_nodes(chunk.features, "b_q", "b_p", weighted=True))
    fold_state(builder, chunk, QUERIES)
    states = TensorArgument("states", (), "acc", slots("HQ", "NS", chunk))
    tensors = (
        *output_tensors(facts),
        *loaded.tensors,
        *chunk.tables(weights=True),
        states,
        *carried_arguments(chunk, "HQ"),
    )
    return Kernel("dcarry", "", tensors, (*SCALARS, "NC"), CONSTANTS, builder.build(), (), (BACK,))


def slots(heads: str, count: str, chunk: ChunkFacts) -> str:
    """The comment beside a workspace of states."""
    if chunk.summed:
        return f"[B, {heads}, {count}, SLOT]: FP * V, then FP sums"
    return f"[B, {heads}, {count}, FP, V]"


def carried_arguments(chunk: ChunkFacts, heads: str) -> tuple[TensorArgument, ...]:
    """States at chunks, and the normaliser's sums apart, in the accumulators' type."""
    carried = TensorArgument("carried", (), chunk.carried, f"[B, {heads}, NC, FP, V]", written=True)
    if not chunk.summed:
        return (carried,)
    return (carried, TensorArgument("sums", (), "acc", f"[B, {heads}, NC, FP]", written=True))


def _store_carried(builder: GraphBuilder, chunk: ChunkFacts) -> None:
    for n, tile in enumerate(chunk.features.tiles):
        width = str(tile.width)
        lines = [f"r_f{n} = {column_text(tile.start, tile.width)}"]
        if n == 0:
            lines.append("p_kept = p_carried + tl.cast(i_c, tl.int64) * FP * V")
        builder.store(
            STEP, (width, "BV"), *lines, f"b_h{n}.to(carried.dtype.element_ty)",
            name=f"keep b_h{n}", reads=(f"b_h{n}",), tensor="carried", guard=chunk.v_mask,
            note="the state at this chunk" if n == 0 else "",
            address=f"p_kept + r_f{n}[:, None] * V + o_v[None, :]",
        )  # fmt: skip
        if chunk.summed:
            builder.store(
                STEP, (width,), f"b_z{n}", name=f"keep b_z{n}", reads=(f"b_z{n}",),
                tensor="sums", address=f"p_sums + i_c * FP + r_f{n}",
            )  # fmt: skip


def load_outputs(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    facts: GradientFacts,
    region: str = STEP,
    *,
    queries: bool = True,
    delta: bool = True,
) -> None:
    """A chunk of q and of do as the weights see it, with the normaliser's gradient `b_d`."""
    if queries:
        load_rows(builder, chunk, "q", region)
    guard = join_guards("m_t[:, None]", chunk.v_mask)
    builder.add(
        load_tile(
            "b_do", "p_do", ("stride_do_t", "stride_do_v"), ("r_c", "o_v"), ("BC", "BV"), region,
            guard=guard, start="i_c * BC",
        )
    )  # fmt: skip
    if facts.summed:
        builder.load("b_n", region, ("BC",), tensor="norm", address="p_norm + o_t", guard="m_t")
        safe = "b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)"
        builder.map("b_n", region, ("BC",), safe, name="normaliser's inverse", reads=("b_n",))
        if delta:
            place = "p_delta + o_t"
            builder.load("b_d", region, ("BC",), tensor="delta", address=place, guard="m_t")
    scale_outputs(builder, facts, region, ("BC", "BV"))


def output_tensors(facts: GradientFacts) -> tuple[TensorArgument, ...]:
    """q, do and what normalising needs, as arguments."""
    known = facts.tensors(tokens="T")
    names = ["q", "do", *(["norm", "delta"] if facts.summed else [])]
    return tuple(known[name] for name in names)
