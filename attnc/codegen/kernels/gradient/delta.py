"""The `delta` pass of a normalised chunked form: dn = -do . o / n of every row, do . o of a sum.

do / n is rounded as the passes that follow round it, so that a row of one key cancels exactly. The
rows of a sum of terms are divided by what their lse says, in the passes that follow.
"""

from __future__ import annotations

from attnc.codegen.graph import SETUP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.operand import join_guards


def delta_kernel(facts: GradientFacts) -> Kernel:
    """One program: BT rows of one query head."""
    builder = GraphBuilder("delta")
    shape = ("BT", "BV")
    guard = join_guards("m_t[:, None]", facts.v_mask)
    if facts.softmax:
        builder.load("b_dl", SETUP, ("BT",), tensor="dlse", address="p_dlse + r_t", guard="m_t")
    else:
        builder.load("b_n", SETUP, ("BT",), tensor="norm", address="p_norm + r_t", guard="m_t")
    for name in ("o", "do"):
        place = "p_o + r_t[:, None] * HQ * V + o_v[None, :]"
        if name == "do":
            place = "p_do + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v"
        builder.load(
            f"b_{name}", SETUP, shape, dtype="io", tensor=name, address=place, guard=guard,
            note="[BT, BV]",
        )  # fmt: skip
    of_sum = ("b_d = tl.sum(b_do.to(ACC) * b_o.to(ACC), 1) - b_dl",)
    over_norm = (
        "b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)",
        "b_do = (b_do * b_n[:, None]).to(IO)",
        "b_d = -tl.sum(b_do.to(ACC) * b_o.to(ACC), 1)",
    )
    note = "what normalising gives back"
    lines = of_sum if facts.softmax else over_norm
    reads = ("b_n", "b_dl", "b_o", "b_do")
    builder.reduce("b_d", SETUP, ("BT",), *lines, reads=reads, note=note)
    builder.store(
        SETUP, ("BT",), "b_d", name="store delta", reads=("b_d",), tensor="delta",
        address="p_delta + r_t", guard="m_t",
    )  # fmt: skip
    known = facts.tensors(tokens="T")
    layout = known["delta"].layout
    tensors = (
        known["o"],
        known["do"],
        known["dlse" if facts.softmax else "norm"],
        TensorArgument("delta", (), "acc", layout, written=True),
    )
    constants = ("V", "BT", "BV")
    return Kernel("delta", "", tensors, ("T", "HQ"), constants, builder.build())
