"""Softmax by the online fold of (maximum, sum, accumulator), in log2 so that one exp2 serves.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1.
"""

from __future__ import annotations

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.decay import LOG2E, index_bindings
from attnc.codegen.kernels.scales import SCORE_SCALE, UNSCALED, score_scale
from attnc.codegen.kernels.sink import sink_node
from attnc.codegen.kernels.visible import visible_lines


def start_online(builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer) -> None:
    """Before the first key: no maximum and an empty sum, or those of the sink."""
    if algebra.sink is not None:
        sink_node(builder, algebra, loaded, printer)
        line = "b_m = tl.zeros([BT], ACC) + b_sink"
        note = "running maximum, in log2: the sink is the first key of every row"
        builder.fold("b_m", SETUP, ("BT",), line, reads=("b_sink",), note=note)
        line = "b_l = tl.full([BT], 1.0, ACC)"
        builder.fold("b_l", SETUP, ("BT",), line, note="running sum")
        return
    minus_infinity = 'b_m = tl.full([BT], float("-inf"), ACC)'
    builder.fold("b_m", SETUP, ("BT",), minus_infinity, note="running maximum, in log2")
    builder.fold("b_l", SETUP, ("BT",), "b_l = tl.zeros([BT], ACC)", note="running sum")


def online_step(
    builder: GraphBuilder,
    algebra: Algebra,
    scale: float,
    loaded: Loaded,
    printer: Printer,
    *,
    scales: Loaded = UNSCALED,
    heads: bool = False,
    shift: str = "",
    rows: str = SETUP,
) -> str:
    """Fold one key tile; the name of the tile of weights that meets v.

    `scales` are those of 8-bit tensors. With `heads` the rows are query heads of one token, so that
    i_h is a vector. `shift` is added to every score, in log2. `rows` is the region where a program
    knows the positions of its rows.
    """
    tile = ("BT", "BS")
    # with a plain score and a positive scale, scaling folds into the exponent's one multiply-add
    folded = algebra.plain_score and scale > 0 and not shift
    times = score_scale(builder, algebra, scales, scale * LOG2E if folded else scale)
    factor = f" * {times}" if folded else ""
    if not folded:
        lines, reads = expression_lines(
            builder, algebra, times, loaded, printer, heads=heads, rows=rows
        )
        lines.append(f"b_s = b_s * {number(LOG2E)}" + (f" + {shift}" if shift else ""))
        note = "the declared score, in log2"
        builder.map("b_s", STEP, tile, *lines, name="score", reads=reads, note=note)
    hidden = 'b_s = tl.where(m_st, b_s, float("-inf"))'
    builder.map(
        "b_s", STEP, tile, *visible_lines(algebra, loaded.bindings), hidden,
        name="visible", reads=("b_s", *(n.buffer for n in loaded.nodes)), masked_only=True,
        note="what the mask hides weighs exp(-inf) = 0",
    )  # fmt: skip
    new_maximum(builder, f"tl.max(b_s, 1){factor}", "b_s")
    weights = f"b_p = tl.exp2(b_s{factor} - b_ms[:, None])"
    builder.map("b_p", STEP, tile, weights, reads=("b_s", "b_ms", SCORE_SCALE))
    fold_weights(builder)
    return "b_p"


def new_maximum(builder: GraphBuilder, largest: str, source: str) -> None:
    """`b_mn`, the maximum with a tile's `largest`, and `b_a`, by which it rescales the sums."""
    line = f"b_mn = tl.maximum(b_m, {largest})"
    note = "online softmax: the new maximum rescales what was summed so far"
    builder.reduce("b_mn", STEP, ("BT",), line, reads=(source, "b_m"), note=note)
    # a row that has seen nothing subtracts 0, not -inf
    safe = 'b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)'
    builder.map("b_ms", STEP, ("BT",), safe, reads=("b_mn",))
    builder.map("b_a", STEP, ("BT",), "b_a = tl.exp2(b_m - b_ms)", reads=("b_m", "b_ms"))


def fold_weights(builder: GraphBuilder) -> None:
    """Add the weights `b_p` to the sum, and rescale it and the accumulator."""
    total = "b_l = b_l * b_a + tl.sum(b_p, 1)"
    builder.fold("b_l", STEP, ("BT",), total, reads=("b_l", "b_a", "b_p"))
    builder.fold("b_m", STEP, ("BT",), "b_m = b_mn", reads=("b_mn",))
    rescaled = "b_o = b_o * b_a[:, None]"
    builder.fold("b_o", STEP, ("BT", "BV"), rescaled, name="rescale b_o", reads=("b_o", "b_a"))


def expression_lines(
    builder: GraphBuilder,
    algebra: Algebra,
    times: str,
    loaded: Loaded,
    printer: Printer,
    *,
    target: str = "b_s",
    heads: bool = False,
    rows: str = SETUP,
) -> tuple[list[str], tuple[str, ...]]:
    """Statements of `target` = the algebra's score of `b_s` times `times`, and what they read.

    Adds the indices of rows and heads as numbers to the builder.
    """
    assert algebra.score is not None
    setup, bindings = index_bindings(algebra.score)
    lines: list[str] = []
    names = {symbol.name for symbol in algebra.score.free_symbols}
    if heads and "h" in names:
        bindings["h"] = "f_h[:, None]"
    if "i" in names:
        setup.append("f_i = b_i.to(ACC)")
        bindings["i"] = "f_i[:, None]"
    if "j" in names:
        lines.append("f_j = o_s.to(ACC)")
        bindings["j"] = "f_j[None, :]"
    if setup:
        builder.map("f_index", rows, (), *setup, note="indices as numbers, exact to 2**24")
    lines.append(f"b_s = b_s * {times}")
    if not algebra.plain_score:
        bound = {**bindings, **loaded.bindings}
        lines.extend(_expression(algebra.score, bound, printer, target))
    return lines, ("b_s", "f_index", SCORE_SCALE, *(node.buffer for node in loaded.nodes))


def _expression(
    score: sympy.Expr, bindings: dict[str, str], printer: Printer, target: str
) -> tuple[str, ...]:
    bound = printer.bound({**bindings, "s": "b_s"})
    if "s" in {symbol.name for symbol in score.free_symbols}:
        return bound.statements(target, score)
    # a score of positions alone still has the shape of a tile
    return (*bound.statements("b_e", score), f"{target} = b_s * 0.0 + b_e")


def finish_online(
    builder: GraphBuilder,
    algebra: Algebra,
    *,
    region: str = FINISH,
    address: str = "p_lse + r_t",
) -> None:
    """Normalise, and the log-sum-exp in natural log, which is stored at `address`."""
    whole = "b_o = b_o / tl.where(b_l > 0.0, b_l, 1.0)[:, None]"
    note = "a row that saw nothing gives 0, and a log-sum-exp of -inf"
    if algebra.sink is not None:
        whole, note = "b_o = b_o / b_l[:, None]", "a row that saw nothing but the sink gives 0"
    tile = ("BT", "BV")
    builder.map("b_o", region, tile, whole, name="normalise", reads=("b_o", "b_l"), note=note)
    line = f"b_lse = b_m * {number(1 / LOG2E)} + tl.log(b_l)"
    builder.map("b_lse", region, ("BT",), line, reads=("b_m", "b_l"))
    builder.store(
        region, ("BT",), "b_lse", name="store lse", reads=("b_lse",),
        tensor="lse", address=address, guard="m_t",
    )  # fmt: skip
