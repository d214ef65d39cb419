"""The `combine` pass: the rows of all splits of a decode step as one.

Source: Flash-Decoding (Dao et al. 2023, pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import SETUP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.pointwise import combine_sums


def combine_kernel(algebra: Algebra, split_rows: str = "BN") -> Kernel:
    """The rows of all splits as one, in order: one program a query head."""
    builder = GraphBuilder("combine")
    if algebra.has_lse:
        builder.load(
            "b_lse", SETUP, (split_rows,), tensor="part_lse",
            address="p_lse + r_n * HQ", note="the log-sum-exp of every split",
        )  # fmt: skip
    builder.load(
        "b_p", SETUP, (split_rows, "BV"), tensor="parts", note="[BN, BV]",
        address="p_parts + r_n[:, None] * HQ * V + o_v[None, :]", guard="m_v[None, :]",
    )  # fmt: skip
    if algebra.has_lse:
        _combine_logs(builder, split_rows)
    else:
        combine_sums(builder, algebra, split_rows)
    builder.store(
        SETUP, ("BV",), "b_o.to(o.dtype.element_ty)", name="store o", reads=("b_o",), tensor="o",
        address="o + i_bh * V + o_v", guard="m_v",
    )  # fmt: skip
    tensors = [TensorArgument("parts", (), "acc", "[B, NS, HQ, V]")]
    if algebra.has_lse:
        builder.store(
            SETUP, (), "b_ms + tl.log(b_l)", name="store lse", reads=("b_ms", "b_l"),
            tensor="lse", address="lse + i_bh",
        )  # fmt: skip
        tensors.append(TensorArgument("part_lse", (), "acc", "[B, NS, HQ]"))
    elif algebra.normalize == "sum":
        tensors.append(TensorArgument("part_norm", (), "acc", "[B, NS, HQ]: sums of weights"))
    tensors.append(TensorArgument("o", (), "io", "[B, 1, HQ, V]", written=True))
    if algebra.has_lse:
        layout = "[B, HQ, 1]: natural log"
        tensors.append(TensorArgument("lse", (), "acc", layout, written=True))
    constants = ("V", "BV", split_rows)
    return Kernel("combine", "", tuple(tensors), ("HQ",), constants, builder.build())


def _combine_logs(builder: GraphBuilder, split_rows: str) -> None:
    """`b_o` of the splits, each by its share of the sum of exponentials."""
    largest = "b_m = tl.max(b_lse, 0)"
    builder.reduce("b_m", SETUP, (), largest, reads=("b_lse",))
    # rows that have seen nothing subtract 0, not -inf
    safe = 'b_ms = tl.where(b_m == float("-inf"), 0.0, b_m)'
    builder.map("b_ms", SETUP, (), safe, reads=("b_m",))
    builder.map("b_w", SETUP, (split_rows,), "b_w = tl.exp(b_lse - b_ms)", reads=("b_lse", "b_ms"))
    builder.reduce("b_l", SETUP, (), "b_l = tl.sum(b_w, 0)", reads=("b_w",))
    whole = "b_o = tl.sum(b_p * b_w[:, None], 0) / tl.where(b_l > 0.0, b_l, 1.0)"
    builder.reduce("b_o", SETUP, ("BV",), whole, reads=("b_p", "b_w", "b_l"))
