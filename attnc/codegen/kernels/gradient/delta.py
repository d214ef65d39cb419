"""delta, what normalising gives back: in a pass over rows, or by the `delta` pass alone.

The `delta` pass is of a normalised chunked form: dn = -do . o / n of every row, do . o of a
sum. do / n is rounded as the passes that follow round it, so that a row of one key cancels exactly.
The rows of a sum of terms are divided by what their lse says, in the passes that follow.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import exact_for_keys
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
    _store_delta(builder, SETUP, "b_d")
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


def make_delta(builder: GraphBuilder, facts: GradientFacts) -> None:
    """delta of the rows, from o, do and dlse."""
    if not (facts.softmax or facts.summed):
        return
    guard = join_guards("m_t[:, None]", facts.v_mask)
    builder.load(
        "b_o", SETUP, ("BT", "BV"), dtype="io", tensor="o", note="[BT, BV]",
        address="p_o + r_t[:, None] * HQ * V + o_v[None, :]", guard=guard,
    )  # fmt: skip
    line = "b_d = tl.sum(b_do.to(ACC) * b_o.to(ACC), 1)"
    note = "what normalising gives back: do . o"
    if facts.softmax:
        builder.load("b_dl", SETUP, ("BT",), tensor="dlse", address="p_dlse + r_t", guard="m_t")
        builder.reduce(
            "b_d", SETUP, ("BT",), f"{line} - b_dl", reads=("b_do", "b_o", "b_dl"), note=note
        )
    else:
        # of do over n as it is rounded: where one key is all a row sees, do.v - do.o is then 0
        line = line.replace("tl.sum", "-tl.sum")
        builder.reduce("b_d", SETUP, ("BT",), line, reads=("b_do", "b_o"), note=note)
    if not exact_for_keys(facts):
        _store_delta(builder, SETUP, "b_d")


def exact_delta(builder: GraphBuilder, facts: GradientFacts) -> None:
    """delta without its rounding, for the `dkv` pass."""
    if exact_for_keys(facts):
        share = "(1.0 - b_ps) * b_d" if facts.algebra.sink is not None else "b_d"
        line = f"b_de = b_z + {share} - b_dl"
        note = "delta without its rounding: a row's score gradients add up to dlse"
        reads = ("b_z", "b_d", "b_dl", "b_ps")
        builder.map("b_de", FINISH, ("BT",), line, reads=reads, note=note)
        _store_delta(builder, FINISH, "b_de")


def _store_delta(builder: GraphBuilder, region: str, value: str) -> None:
    builder.store(
        region, ("BT",), value, name="store delta", reads=(value,), tensor="delta",
        address="p_delta + r_t", guard="m_t",
    )  # fmt: skip
