"""The `dscan` pass: gradients of states carried from the last segment to the first."""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import SCALARS, ChunkFacts, decay_setup
from attnc.codegen.kernels.gradient.carry import slots
from attnc.codegen.kernels.scan import load_segment_decay
from attnc.codegen.tile_range import KeyLoop


def dscan_kernel(chunk: ChunkFacts) -> Kernel:
    """One program: BE elements of the gradient of one query head's state."""
    decay = chunk.algebra.decay
    builder = GraphBuilder("dscan")
    loaded = decay_setup(builder, chunk) if decay == "constant" else Loaded((), {}, ())
    if chunk.stateful:
        builder.load(
            "b_h", SETUP, ("BE",), carried=True, tensor="dfinal", address="p_dfinal + o_api",
            guard="m_api & (o_e < n_e)",
            note="the gradient of the final state, which enters by the first head of its group",
        )  # fmt: skip
    else:
        builder.fold("b_h", SETUP, ("BE",), "b_h = tl.zeros([BE], ACC)", note="nothing comes after")
    slot = "p_states + i_n * SLOT + o_e"
    builder.load(
        "b_x", STEP, ("BE",), tensor="states", address=slot, guard="m_e",
        note="what segment i_n folded from zero gives way to what comes after it",
    )  # fmt: skip
    builder.store(
        STEP, ("BE",), "b_h", name="store carry", reads=("b_h", "b_x"),
        tensor="states", address=slot, guard="m_e",
    )  # fmt: skip
    fold = "b_h = b_h + b_x" if decay is None else "b_h = b_h * tl.exp2(b_gs) + b_x"
    if decay == "constant":
        tokens = "b_gs = tl.minimum(CPS * BC, T - i_n * CPS * BC) * b_c"
        builder.map("b_gs", STEP, (), tokens, reads=("b_c",))
    elif decay == "gated":
        place = "decays + (i_b * HS + i_h // (HQ // HS)) * NS + i_n"
        builder.load("b_gs", STEP, (), tensor="decays", address=place)
    elif decay == "channel":
        load_segment_decay(builder, "(i_b * HS + i_h // (HQ // HS))")
    builder.fold("b_h", STEP, ("BE",), fold, name="fold b_h", reads=("b_h", "b_x", "b_gs"))
    if chunk.stateful:
        builder.store(
            FINISH, ("BE",), "b_h", name="store gradient", reads=("b_h",), tensor="dinitial",
            note="the gradient of the initial state",
            address="p_dinitial + o_api", guard="m_api",
        )  # fmt: skip
    layout = slots("HQ", "NS", chunk)
    tensors = [TensorArgument("states", (), "acc", layout, written=True)]
    if decay in {"gated", "channel"}:
        layout = "[B, HS, NS, FP]" if decay == "channel" else "[B, HS, NS]"
        tensors.append(TensorArgument("decays", (), "acc", layout))
    tensors.extend(loaded.tensors)
    if chunk.stateful:
        columns = "V + 1" if chunk.summed else "V"
        tensors.append(TensorArgument("dfinal", (), "acc", f"[B, HS, F, {columns}]"))
        layout = f"[B, HQ, F, {columns}]"
        tensors.append(TensorArgument("dinitial", (), "acc", layout, written=True))
    loop = KeyLoop("NS - 1", "-1", True, "from segment to segment, the last one first")
    constants = ("V", "BC", "BE", "F", "FP")
    return Kernel("dscan", "", tuple(tensors), SCALARS, constants, builder.build(), (), (loop,))
