"""The state family by its parallel form: weights of one tile of pairs at a time, any mask."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.decay import constant_decay, index_bindings
from attnc.codegen.kernels.visible import visible_lines
from attnc.codegen.kernels.weight import horner


def start_parallel(builder: GraphBuilder, algebra: Algebra) -> None:
    """Before the first key: an empty normaliser, where there is one."""
    if algebra.normalize == "sum":
        line = "b_n = tl.zeros([BT], ACC)"
        builder.fold("b_n", SETUP, ("BT",), line, note="running normaliser")


def parallel_step(
    builder: GraphBuilder, algebra: Algebra, scale: float, loaded: Loaded, printer: Printer
) -> str:
    """Fold one key tile; the name of the tile of weights that meets v."""
    tile = ("BT", "BS")
    lines = horner("b_w", "b_s", algebra.coefficients, scale, direct=algebra.direct)
    note = "the weight, a polynomial of s"
    builder.map("b_w", STEP, tile, *lines, name="weight", reads=("b_s",), note=note)
    if algebra.decay == "constant":
        _constant(builder, algebra, loaded, printer)
    elif algebra.decay == "gated":
        _gated(builder)
    if not algebra.by_channel:
        # by channel, what is hidden has decayed to 0 already
        hide_weights(builder, algebra, loaded)
    fold_normaliser(builder, algebra)
    return "b_w"


def hide_weights(builder: GraphBuilder, algebra: Algebra, loaded: Loaded) -> None:
    """`b_w` of what the mask shows."""
    hidden = "b_w = tl.where(m_st, b_w, 0.0)"
    builder.map(
        "b_w", STEP, ("BT", "BS"), *visible_lines(algebra, loaded.bindings), hidden,
        name="visible", reads=("b_w", *(n.buffer for n in loaded.nodes)), masked_only=True,
        note="what the mask hides weighs 0",
    )  # fmt: skip


def fold_normaliser(builder: GraphBuilder, algebra: Algebra) -> None:
    """Add the weights of a tile to the rows' normaliser, where there is one."""
    if algebra.normalize == "sum":
        # the sum of what multiplies v, rounded as it is: then a lone key gives back its v
        line = "b_n = b_n + tl.sum(b_w.to(IO).to(ACC), 1)"
        builder.fold("b_n", STEP, ("BT",), line, reads=("b_n", "b_w"))


def _constant(builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer) -> None:
    assert algebra.log_decay is not None
    setup, bindings = index_bindings(algebra.log_decay)
    rate = constant_decay(algebra.log_decay, {**bindings, **loaded.bindings}, printer)
    reads = tuple(node.buffer for node in loaded.nodes)
    builder.map("b_c", SETUP, (), *setup, *rate, reads=reads, note="log2 decay a token")
    apart = "b_d = (b_i[:, None] - o_s[None, :]).to(ACC) * b_c"
    builder.map(
        "b_w", STEP, ("BT", "BS"), apart, "b_w = b_w * tl.exp2(b_d)",
        name="decay", reads=("b_w", "b_c"),
        note="decay from key to query: exp of a difference, never of a sum alone",
    )  # fmt: skip


def _gated(builder: GraphBuilder) -> None:
    builder.load(
        "b_gi", SETUP, ("BT",), dtype="fp64", tensor="gates", note="summed log2 decay of the rows",
        address="p_gates + b_i", guard="m_t & (b_i >= 0)",
    )  # fmt: skip
    builder.load(
        "b_gj", STEP, ("BS",), dtype="fp64", tensor="gates", note="summed log2 decay of the keys",
        address="p_gates + o_s", edge_guard="m_s",
    )  # fmt: skip
    apart = "b_d = (b_gi[:, None] - b_gj[None, :]).to(ACC)"
    builder.map(
        "b_w", STEP, ("BT", "BS"), apart, "b_w = b_w * tl.exp2(b_d)",
        name="decay", reads=("b_w", "b_gi", "b_gj"),
        note="fp64 sums: their difference keeps the digits that fp32 would lose",
    )  # fmt: skip


def divide_rows(builder: GraphBuilder) -> None:
    """`b_o` over the rows' normaliser."""
    line = "b_o = b_o / tl.where(b_n != 0.0, b_n, 1.0)[:, None]"
    note = "a row that saw nothing gives 0"
    shape = ("BT", "BV")
    builder.map("b_o", FINISH, shape, line, name="normalise", reads=("b_o", "b_n"), note=note)


def finish_parallel(builder: GraphBuilder, algebra: Algebra, scale: float) -> None:
    """Normalise, or scale a linear weight once a row."""
    tile = ("BT", "BV")
    factor = float(algebra.coefficients[1]) * scale if algebra.direct else 1.0
    if algebra.normalize == "sum":
        divide_rows(builder)
        builder.store(
            FINISH, ("BT",), "b_n", name="store norm", reads=("b_n",),
            tensor="norm", address="p_norm + r_t", guard="m_t",
        )  # fmt: skip
    elif factor != 1.0:
        line = f"b_o = b_o * {number(factor)}"
        note = "the scale of a linear weight, once a row"
        builder.map("b_o", FINISH, tile, line, name="scale", reads=("b_o",), note=note)
