"""What a fused backward does by rows: `clear` before its pass over keys, `cast` after it.

`clear` stores delta and zeros, to which `dqkv` adds what each tile of keys gives dq, in fp32 and in
no fixed order; `cast` rounds the sum to dq.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.expression.printer import number
from attnc.codegen.graph import FINISH, SETUP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.gradient.border import pair_constants
from attnc.codegen.kernels.gradient.delta import make_delta
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.operand import join_guards, load_tile

_SHAPE = ("BT", "BK")
_SUM = "p_dq_sum + r_t[:, None] * HQ * K + o_k[None, :]"


def row_sum() -> TensorArgument:
    """dq as it is summed over keys."""
    return TensorArgument("dq_sum", (), "acc", "[B, TQ, HQ, K]: dq over its scale")


def clear_kernel(facts: GradientFacts) -> Kernel:
    """delta [B, HQ, TQ], and zeros in place of dq's sum; a program has BT rows of a head."""
    builder = GraphBuilder("clear")
    guard = join_guards("m_t[:, None]", facts.v_mask)
    stride = ("stride_do_t", "stride_do_v")
    shape = ("BT", "BV")
    builder.add(load_tile("b_do", "p_do", stride, ("r_t", "o_v"), shape, SETUP, guard=guard))
    make_delta(builder, facts)
    line = "b_dq = tl.zeros([BT, BK], ACC)"
    builder.map("b_dq", FINISH, _SHAPE, line, note="what keys give dq is added to this")
    _store_rows(builder, facts, "b_dq", "dq_sum", _SUM)
    known = facts.tensors()
    tensors = (
        known["o"],
        known["dlse"],
        known["do"],
        _written(known["delta"]),
        _written(row_sum()),
    )
    scalars = ("TQ", "HQ")
    return Kernel("clear", "", tensors, scalars, pair_constants(facts), builder.build())


def cast_kernel(facts: GradientFacts) -> Kernel:
    """dq [B, TQ, HQ, K] of its sum; a program has BT rows of a head."""
    builder = GraphBuilder("cast")
    guard = join_guards("m_t[:, None]", facts.k_mask)
    builder.load("b_dq", SETUP, _SHAPE, tensor="dq_sum", address=_SUM, guard=guard)
    if facts.scale != 1.0:
        line = f"b_dq = b_dq * {number(facts.scale)}"
        note = "ds/dq = scale * k"
        builder.map("b_dq", FINISH, _SHAPE, line, name="scale dq", reads=("b_dq",), note=note)
    place = "p_dq + r_t[:, None] * HQ * K + o_k[None, :]"
    _store_rows(builder, facts, "b_dq.to(dq.dtype.element_ty)", "dq", place)
    dq = TensorArgument("dq", (), "io", "[B, TQ, HQ, K]", written=True)
    return Kernel("cast", "", (row_sum(), dq), ("TQ", "HQ"), pair_constants(facts), builder.build())


def _store_rows(
    builder: GraphBuilder, facts: GradientFacts, value: str, tensor: str, address: str
) -> None:
    builder.store(
        FINISH, _SHAPE, value, name=f"store {tensor}", reads=("b_dq",), tensor=tensor,
        address=address, guard=join_guards("m_t[:, None]", facts.k_mask), note="[BT, BK]",
    )  # fmt: skip


def _written(tensor: TensorArgument) -> TensorArgument:
    return replace(tensor, written=True)
