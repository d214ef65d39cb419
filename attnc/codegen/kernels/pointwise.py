"""A weight that is any function of the score: one tile of weights at a time, no maximum to fold."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.online import expression_lines
from attnc.codegen.kernels.parallel import fold_normaliser, hide_weights


def pointwise_step(
    builder: GraphBuilder,
    algebra: Algebra,
    scale: float,
    loaded: Loaded,
    printer: Printer,
    *,
    heads: bool = False,
) -> str:
    """Fold one key tile; the name of the tile of weights that meets v.

    With `heads` the rows are query heads of one token, so that i_h is a vector.
    """
    lines, reads = expression_lines(
        builder, algebra, number(scale), loaded, printer, target="b_w", heads=heads
    )
    note = "the weight, of the declared score"
    builder.map("b_w", STEP, ("BT", "BS"), *lines, name="weight", reads=reads, note=note)
    hide_weights(builder, algebra, loaded)
    fold_normaliser(builder, algebra)
    return "b_w"


def finish_split(builder: GraphBuilder, algebra: Algebra) -> None:
    """The sum of weights of one split of a decode step, where rows are divided by one."""
    if algebra.normalize == "sum":
        builder.store(
            FINISH, ("BT",), "b_n", name="store norm", reads=("b_n",),
            tensor="norm", address="p_norm + r_t", guard="m_t",
        )  # fmt: skip


def combine_sums(builder: GraphBuilder, algebra: Algebra, split_rows: str) -> None:
    """`b_o`, the sum over all splits, over the sum of their weights where rows have one."""
    total = "b_o = tl.sum(b_p, 0)"
    if algebra.normalize == "sum":
        builder.load(
            "b_w", SETUP, (split_rows,), tensor="part_norm", note="the weights of every split",
            address="p_norm + r_n * HQ",
        )  # fmt: skip
        builder.reduce("b_n", SETUP, (), "b_n = tl.sum(b_w, 0)", reads=("b_w",))
        total += " / tl.where(b_n != 0.0, b_n, 1.0)"
    builder.reduce("b_o", SETUP, ("BV",), total, reads=("b_p", "b_n"))
