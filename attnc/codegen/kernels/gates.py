"""The pass before a gated parallel form: running sums of the log decay, in fp64.

A difference of two sums must keep the digits of a single token's decay; over 16k tokens of strong
gates fp32 sums would lose them.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import SETUP, STEP, GraphBuilder, Node
from attnc.codegen.index import Axis, load_refs
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.decay import LOG2E
from attnc.codegen.printer import Printer, number
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.variant import Variant

_AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", ""),
    "hkv": Axis("i_hkv", ""),
    "t": Axis("o_t", "row", guard="m_t", tile="BC", region=STEP),
}


def gates_kernel(variant: Variant, algebra: Algebra, printer: Printer) -> Kernel:
    """gates[t] = sum over tokens 0..t of the log2 decay."""
    assert algebra.log_decay is not None
    builder = GraphBuilder("gates")
    declared = (*variant.params, *variant.inputs)
    names = {s.name for s in algebra.log_decay.free_symbols}
    scalars = frozenset(d.name for d in declared if not d.shape and d.name in names)
    loaded = load_refs(algebra.decay_refs, declared, _AXES, two_lanes=False, names=scalars)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    index = {"h": "i_h", "H": "HQ", "hkv": "i_hkv", "b": "i_b", "d": "K"}
    lines = [f"f_{n} = tl.cast({text}, ACC)" for n, text in index.items() if n in names]
    bindings = {**loaded.bindings, **{n: f"f_{n}" for n in index if n in names}}
    if lines:
        builder.add(Node("indices", "map", "f_index", SETUP, lines=tuple(lines)))
    builder.add(
        Node(
            "start b_gs",
            "fold",
            "b_gs",
            SETUP,
            (),
            "fp64",
            carried=True,
            note="the sum so far",
            lines=("b_gs = tl.zeros([], tl.float64)",),
        )
    )
    builder.extend(node for node in loaded.nodes if node.region == STEP)
    bound = Printer(bindings, printer.helpers)
    builder.add(
        Node(
            "gate",
            "map",
            "b_a",
            STEP,
            ("BC",),
            reads=tuple(n.buffer for n in loaded.nodes),
            note="log2 decay of each token",
            lines=(
                *bound.statements("b_a", algebra.log_decay),
                f"b_a = tl.where(m_t, b_a * {number(LOG2E)}, 0.0)",
            ),
        )
    )
    builder.add(
        Node(
            "sums",
            "scan",
            "b_g",
            STEP,
            ("BC",),
            "fp64",
            reads=("b_a", "b_gs"),
            lines=("b_g = b_gs + tl.cumsum(b_a.to(tl.float64), 0)",),
        )
    )
    builder.add(
        Node(
            "store gates",
            "store",
            "",
            STEP,
            ("BC",),
            reads=("b_g",),
            tensor="gates",
            address="p_gates + o_t",
            guard="m_t",
            lines=("b_g",),
        )
    )
    builder.add(
        Node(
            "fold b_gs",
            "fold",
            "b_gs",
            STEP,
            (),
            "fp64",
            reads=("b_gs", "b_a", "b_g"),
            lines=("b_gs = b_gs + tl.sum(b_a.to(tl.float64), 0)",),
            carried=True,
        )
    )
    layout = "[B, HS, T]: summed log2 decay"
    tensors = (*loaded.tensors, TensorArgument("gates", (), "fp64", layout, written=True))
    loop = KeyLoop("0", "tl.cdiv(T, BC)", True, "tokens in order")
    return Kernel(
        "gates", "", tensors, ("T", "HQ", "HKV", "HS"), ("K", "BC"), builder.build(), (), (loop,)
    )
