"""The `scan` pass: states carried from segment to segment; slot n becomes the state before n."""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import SCALARS, ChunkFacts, decay_setup
from attnc.codegen.tile_range import KeyLoop


def scan_kernel(facts: ChunkFacts) -> Kernel:
    """One program: BE elements of one state."""
    decay = facts.algebra.decay
    builder = GraphBuilder("scan")
    loaded = decay_setup(builder, facts) if decay == "constant" else Loaded((), {}, ())
    note = "the state before the first token"
    if facts.stateful:
        builder.load(
            "b_h", SETUP, ("BE",), note=note, carried=True, tensor="initial_state",
            address="p_initial_state + o_api", guard="m_api",
        )  # fmt: skip
    else:
        builder.fold("b_h", SETUP, ("BE",), "b_h = tl.zeros([BE], ACC)", note=note)
    slot = "p_states + i_n * SLOT + o_e"
    builder.load(
        "b_x", STEP, ("BE",), tensor="states", address=slot, guard="m_e",
        note="what segment i_n folded from zero gives way to what came before it",
    )  # fmt: skip
    builder.store(
        STEP, ("BE",), "b_h", name="store carry", reads=("b_h", "b_x"),
        tensor="states", address=slot, guard="m_e",
    )  # fmt: skip
    fold = "b_h = b_h + b_x"
    if decay == "constant":
        tokens = "b_gs = tl.minimum(CPS * BC, T - i_n * CPS * BC) * b_c"
        builder.map("b_gs", STEP, (), tokens, reads=("b_c",))
    elif decay == "gated":
        builder.load("b_gs", STEP, (), tensor="decays", address="decays + i_bh * NS + i_n")
    elif decay == "channel":
        load_segment_decay(builder, "i_bh")
    if decay is not None:
        fold = "b_h = b_h * tl.exp2(b_gs) + b_x"
    builder.fold("b_h", STEP, ("BE",), fold, name="fold b_h", reads=("b_h", "b_x", "b_gs"))
    if facts.stateful:
        builder.store(
            FINISH, ("BE",), "b_h", name="store state", reads=("b_h",), tensor="final_state",
            note="the state after the last token",
            address="p_final_state + o_api", guard="m_api",
        )  # fmt: skip
    tensors = [TensorArgument("states", (), "acc", facts.slot_layout, written=True)]
    if decay in {"gated", "channel"}:
        layout = "[B, HS, NS, FP]" if decay == "channel" else "[B, HS, NS]"
        tensors.append(TensorArgument("decays", (), "acc", layout))
    tensors.extend(loaded.tensors)
    if facts.stateful:
        layout = f"[B, HS, F, {'V + 1' if facts.summed else 'V'}]"
        tensors.append(TensorArgument("initial_state", (), "acc", layout))
        tensors.append(TensorArgument("final_state", (), "acc", layout, written=True))
    loop = KeyLoop("0", "NS", True, "from segment to segment")
    constants = ("V", "BC", "BE", "F", "FP")
    graph = builder.build()
    return Kernel("scan", "", tuple(tensors), SCALARS, constants, graph, (), (loop,))


def load_segment_decay(builder: GraphBuilder, head: str) -> None:
    """`b_gs` = the log2 decay of segment i_n, of the channel whose row each element stands in."""
    line = "r_f = tl.where(o_e < FP * V, o_e // V, o_e - FP * V)"
    builder.map("r_f", SETUP, ("BE",), line, dtype="i32", note="rows of the state, then the sums")
    builder.load(
        "b_gs", STEP, ("BE",), tensor="decays", reads=("r_f",), guard="m_e",
        address=f"decays + ({head} * NS + i_n) * FP + r_f",
    )  # fmt: skip
