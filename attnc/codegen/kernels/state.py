"""The `state` pass: every segment folded from zero, h = sum of decayed features(k)^T v."""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import (
    CHUNKS,
    CONSTANTS,
    SCALARS,
    ChunkFacts,
    decay_setup,
    decay_step,
    load_keys,
    value_setup,
)
from attnc.codegen.kernels.monomials import column_text, feature_nodes, selection_nodes
from attnc.codegen.kernels.state_fold import fold_state, start_state
from attnc.codegen.kernels.value import with_tensors


def state_kernel(facts: ChunkFacts) -> Kernel:
    """One program: BV columns of one segment of one state."""
    by_channel = facts.algebra.by_channel
    gated = by_channel or facts.algebra.decay == "gated"
    builder = GraphBuilder("state")
    loaded = decay_setup(builder, facts)
    values = value_setup(builder, facts)
    builder.extend(selection_nodes(facts.features, weights=False))
    start_state(builder, facts)
    if gated:
        zero = f"b_gs = tl.zeros([{'BK' if by_channel else ''}], ACC)"
        note = "log2 decay of the whole segment"
        builder.fold("b_gs", SETUP, ("BK",) if by_channel else (), zero, note=note)
    load_keys(builder, facts, values=values)
    decay_step(builder, facts, loaded)
    builder.extend(feature_nodes(facts.features, "b_k", "b_f"))
    fold_state(builder, facts)
    if gated:
        line = "b_gs = b_gs + b_gl.to(ACC)" if by_channel else "b_gs = b_gs + b_gl"
        shape = ("BK",) if by_channel else ()
        builder.fold("b_gs", STEP, shape, line, name="fold b_gs", reads=("b_gs", "b_gl"))
    store_state(builder, facts)
    tensors = [*facts.key_tensors(), *loaded.tensors, *facts.tables(weights=False)]
    tensors.append(TensorArgument("states", (), "acc", facts.slot_layout, written=True))
    if gated:
        layout = f"[B, HS, NS{', FP' if by_channel else ''}]: log2 decay of a segment"
        tensors.append(TensorArgument("decays", (), "acc", layout, written=True))
    graph = builder.build()
    constants = (*CONSTANTS, "LAG") if facts.lagging else CONSTANTS
    return Kernel(
        "state", "", with_tensors(tuple(tensors), values), SCALARS, constants, graph, (), (CHUNKS,)
    )


def store_state(builder: GraphBuilder, facts: ChunkFacts) -> None:
    """The folded state of a segment into its slot."""
    for n, tile in enumerate(facts.features.tiles):
        width = str(tile.width)
        rows = f"r_f{n} = {column_text(tile.start, tile.width)}"
        builder.store(
            FINISH, (width, "BV"), rows, f"b_h{n}",
            name=f"store b_h{n}", reads=(f"b_h{n}",), tensor="states", guard=facts.v_mask,
            note=f"rows {tile.start} to {tile.start + tile.width - 1} of the state",
            address=f"p_states + r_f{n}[:, None] * V + o_v[None, :]",
        )  # fmt: skip
        if facts.summed:
            builder.store(
                FINISH, (width,), f"b_z{n}", name=f"store b_z{n}", reads=(f"b_z{n}",),
                tensor="states", address=f"p_states + FP * V + r_f{n}",
            )  # fmt: skip
    if facts.algebra.by_channel and builder.kernel == "state":
        builder.store(
            FINISH, ("BK",), "b_gs", name="store b_gs", reads=("b_gs",),
            tensor="decays", address="decays + (i_bh * NS + i_n) * FP + r_f0",
        )  # fmt: skip
    elif facts.algebra.decay == "gated" and builder.kernel == "state":
        builder.store(
            FINISH, (), "b_gs", name="store b_gs", reads=("b_gs",),
            tensor="decays", address="decays + i_bh * NS + i_n",
        )  # fmt: skip
