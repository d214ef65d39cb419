"""The fold of a sum of terms begins with what a state weighs, as if that were a row's first key."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import number
from attnc.codegen.graph import GraphBuilder, Operand
from attnc.codegen.kernels.terms import Part, inverse


def read_tile(
    builder: GraphBuilder, query: str, n: int, width: str, state: str, *, region: str
) -> None:
    """Add to `b_n` and `b_o` what tile n gives rows whose features are `query`.

    `state` is the text of the tile as an operand; `b_z` are its sums.
    """
    before = "b_n + " if n else ""
    line = f"b_n = {before}tl.sum({query} * b_z{n}[None, :], 1)"
    reads = (*(("b_n",) if n else ()), query, f"b_z{n}")
    builder.reduce("b_n", region, ("BT",), line, name=f"state sum {n}", reads=reads)
    left = Operand(query, query, ("BT", width))
    right = Operand(f"b_h{n}", state, (width, "BV"))
    builder.dot(
        "b_o", region, ("BT", "BV"), left, right, name=f"from b_h{n}", into="b_o" if n else "",
        note=f"from the state: [BT, {width}] @ [{width}, BV]",
    )  # fmt: skip


def start_from_state(
    builder: GraphBuilder, algebra: Algebra, folded: Part, head_dim: int, *, region: str
) -> None:
    """`b_m`, `b_l` and `b_o` before the first pair, of `b_n` and `b_o` as the state has them.

    `b_sink` is known where there is one.
    """
    times = f" * {folded.factor}" if folded.factor else ""
    if folded.algebra.direct:
        scale = float(folded.algebra.coefficients[1]) * folded.variant.scale.value(head_dim)
        times = f" * {number(scale)}{times}"
    # no weight is negative, but what cancels may round to less than 0
    line = f"b_n = tl.maximum(b_n, 0.0){times}"
    note = "what the state weighs, as one key"
    read = folded.factor
    builder.map(
        "b_n", region, ("BT",), line, name="weigh the state", reads=("b_n", read), note=note
    )
    sunk = algebra.sink is not None
    largest = "tl.maximum(tl.log2(b_n), b_sink)" if sunk else "tl.log2(b_n)"
    note = "running maximum, in log2"
    builder.map("b_m", region, ("BT",), f"b_m = {largest}", reads=("b_n", "b_sink"), note=note)
    # a row that has seen nothing subtracts 0, not -inf
    line = 'b_ms = tl.where(b_m == float("-inf"), 0.0, b_m)'
    builder.map("b_ms", region, ("BT",), line, name="map b_ms, the state", reads=("b_m",))
    builder.map("b_e", region, ("BT",), f"b_e = {inverse('b_ms')}", reads=("b_ms",))
    total = "b_l = b_n * b_e" + (" + tl.exp2(b_sink - b_ms)" if sunk else "")
    summed = ("b_n", "b_e", "b_ms", "b_sink")
    builder.map("b_l", region, ("BT",), total, reads=summed, note="running sum")
    line = f"b_o = b_o * (b_e{times})[:, None]"
    made = ("b_o", "b_e", read)
    builder.map("b_o", region, ("BT", "BV"), line, name="scale the state", reads=made)
