"""A weight that is any function of the score: one tile of weights at a time, no maximum to fold."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.online import expression_lines
from attnc.codegen.kernels.parallel import fold_normaliser, hide_weights


def pointwise_step(
    builder: GraphBuilder, algebra: Algebra, scale: float, loaded: Loaded, printer: Printer
) -> str:
    """Fold one key tile; the name of the tile of weights that meets v."""
    lines, reads = expression_lines(builder, algebra, number(scale), loaded, printer, target="b_w")
    note = "the weight, of the declared score"
    builder.map("b_w", STEP, ("BT", "BS"), *lines, name="weight", reads=reads, note=note)
    hide_weights(builder, algebra, loaded)
    fold_normaliser(builder, algebra)
    return "b_w"
