"""The pass before a gated parallel form: running sums of the log decay, in fp64.

A difference of two sums must keep the digits of a single token's decay; over 16k tokens of strong
gates fp32 sums would lose them.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import TOKEN_AXES, gate_lines
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.sequences import in_sequences
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.variant import Variant


def gates_kernel(variant: Variant, algebra: Algebra, printer: Printer) -> Kernel:
    """gates[t] = sum over tokens 0..t of the log2 decay."""
    assert algebra.log_decay is not None
    builder = GraphBuilder("gates")
    declared = (*variant.params, *variant.inputs)
    names = scalar_names(algebra.log_decay, declared)
    loaded = load_refs(algebra.decay_refs, declared, TOKEN_AXES, two_lanes=False, names=names)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    lines, index = index_bindings(algebra.log_decay)
    if lines:
        builder.map("f_index", SETUP, (), *lines)
    zero = "b_gs = tl.zeros([], tl.float64)"
    builder.fold("b_gs", SETUP, (), zero, dtype="fp64", note="the sum so far")
    builder.extend(node for node in loaded.nodes if node.region == STEP)
    gate = gate_lines(algebra.log_decay, {**loaded.bindings, **index}, printer)
    reads = tuple(node.buffer for node in loaded.nodes)
    builder.map("b_a", STEP, ("BC",), *gate, reads=reads, note="log2 decay of each token")
    sums = "b_g = b_gs + tl.cumsum(b_a.to(tl.float64), 0)"
    builder.scan("b_g", STEP, ("BC",), sums, dtype="fp64", reads=("b_a", "b_gs"))
    builder.store(
        STEP, ("BC",), "b_g", reads=("b_g",), tensor="gates", address="p_gates + o_t", guard="m_t"
    )
    total = "b_gs = b_gs + tl.sum(b_a.to(tl.float64), 0)"
    builder.fold(
        "b_gs", STEP, (), total, dtype="fp64", name="fold b_gs", reads=("b_gs", "b_a", "b_g")
    )
    layout = "[B, HS, T]: summed log2 decay"
    tensors = (*loaded.tensors, TensorArgument("gates", (), "fp64", layout, written=True))
    loop = KeyLoop("0", "tl.cdiv(T, BC)", True, "tokens in order")
    scalars = ("T", "HQ", "HKV", "HS")
    kernel = Kernel("gates", "", tensors, scalars, ("K", "BC"), builder.build(), (), (loop,))
    return in_sequences(kernel, algebra)
