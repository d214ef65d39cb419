"""The state of a segment where every channel decays by itself: rows of it, not values, decay."""

from __future__ import annotations

from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.kernels.chunk import KEYS, ChunkFacts, Fold


def fold_channels(builder: GraphBuilder, facts: ChunkFacts, fold: Fold) -> None:
    """h = Diag(decay) h + (decayed features)^T value: the features are the channels of phi(k)."""
    to_end = "(b_gl[None, :] - b_g)" if fold is KEYS else "b_g"
    rows, tile = f"{fold.rows}u", ("BC", "BK")
    line = f"b_u = tl.exp2({to_end}.to(ACC))"
    builder.map("b_u", STEP, tile, line, reads=("b_g", "b_gl"), note=fold.note)
    builder.map("b_l", STEP, ("BK",), "b_l = tl.exp2(b_gl.to(ACC))", reads=("b_gl",))
    if facts.summed:
        _fold_sums(builder, fold)
    if facts.exact_folds:
        lines = (f"b_ul = {fold.rows} * b_u", f"{rows} = b_ul.to(IO)",
                 f"b_ul = (b_ul - {rows}.to(ACC)).to(IO)")  # fmt: skip
        note = "the decayed rows in two parts, their rounding and what that left"
        builder.map(rows, STEP, tile, *lines, reads=(fold.rows, "b_u"), note=note)
    else:
        line = f"{rows} = {fold.rows} * b_u"
        builder.map(rows, STEP, tile, line, dtype="io", reads=(fold.rows, "b_u"))
    kept = "b_h0 = b_h0 * b_l[:, None]"
    builder.fold("b_h0", STEP, ("BK", "BV"), kept, name="decay b_h0", reads=("b_h0", "b_l"))
    right = Operand(fold.value, fold.value, ("BC", "BV"))
    parts = [(rows, "fold b_h0")]
    parts += [("b_ul", "fold b_h0, the rest")] if facts.exact_folds else []
    for text, name in parts:
        left = Operand(rows, f"tl.trans({text})", ("BK", "BC"), transposed=True)
        builder.dot(
            "b_h0", STEP, ("BK", "BV"), left, right, name=name, into="b_h0", carried=True,
            note="[BK, BC] @ [BC, BV]" if text == rows else "",
        )  # fmt: skip


def _fold_sums(builder: GraphBuilder, fold: Fold) -> None:
    term = f"{fold.rows}.to(ACC) * b_u"
    if fold.weight:
        term = f"{term} * {fold.weight}[:, None]"
    line = f"b_z0 = b_z0 * b_l + tl.sum({term}, 0)"
    reads = ("b_z0", fold.rows, fold.weight, "b_u", "b_l")
    builder.fold("b_z0", STEP, ("BK",), line, name="fold b_z0", reads=reads)
