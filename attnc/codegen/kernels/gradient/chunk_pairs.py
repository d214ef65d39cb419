"""Pairs inside a chunk: their weights, and what they give dq and a decay's exponents."""

from __future__ import annotations

from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.pairs import weight_slope_lines
from attnc.codegen.kernels.weight import horner

SQUARE = ("BC", "BC")


def pairs_inside(
    builder: GraphBuilder, facts: GradientFacts, *, values: bool, scores: bool = True
) -> None:
    """Pairs inside the chunk: with `values` the weights `b_p`, with `scores` `b_ds` of the scores.

    Rows are queries where dq is made and keys elsewhere, so that either tile is the left operand
    of the product that it goes into, straight from registers.
    """
    algebra = facts.algebra
    by_keys = builder.kernel not in {"dquery", "walk_dq"}
    i, j = ("[None, :]", "[:, None]") if by_keys else ("[:, None]", "[None, :]")
    slope = weight_slope_lines("b_y", "b_s", facts) if scores else ()
    seen = f"r_c{i} >= r_c{j}"
    if values or slope:
        pairs = _product("b_k", "b_q", "BK") if by_keys else _product("b_q", "b_k", "BK")
        builder.dot("b_s", STEP, SQUARE, *pairs, note="inside the chunk: the scores again")
    if slope:
        note = "the weight's derivative, a polynomial of s"
        builder.map("b_y", STEP, SQUARE, *slope, reads=("b_s",), note=note)
    if values:
        weight = horner("b_p", "b_s", algebra.coefficients, facts.scale, direct=algebra.direct)
        builder.map("b_p", STEP, SQUARE, *weight, reads=("b_s", "b_y"), name="weight")
    if algebra.decay is not None:
        between = f"b_e = tl.where({seen}, tl.exp2(b_g{i} - b_g{j}), 0.0)"
        note = "decay from key to query, 0 where the query is before the key"
        builder.map("b_e", STEP, SQUARE, between, reads=("b_g", "b_p"), note=note)
        if values:
            line = "b_p = b_p * b_e"
            builder.map("b_p", STEP, SQUARE, line, name="decay", reads=("b_p", "b_e"))
    elif values:
        line = f"b_p = tl.where({seen}, b_p, 0.0)"
        builder.map("b_p", STEP, SQUARE, line, name="visible", reads=("b_p",))
    if not scores:
        return
    pairs = _product("b_v", "b_do", "BV") if by_keys else _product("b_do", "b_v", "BV")
    builder.dot("b_dw", STEP, SQUARE, *pairs, note="gradient of the weights")
    if facts.summed:
        line = f"b_dw = b_dw + b_d{i}"
        builder.map("b_dw", STEP, SQUARE, line, name="normaliser", reads=("b_dw", "b_d"))
    factors = (["b_y"] if slope else []) + (["b_e"] if algebra.decay is not None else [])
    line = " * ".join(["b_ds = b_dw", *factors])
    reads = ("b_dw", "b_p", "b_e", "b_y")
    builder.map("b_ds", STEP, SQUARE, line, reads=reads, note="gradient of the scores")
    if algebra.decay is None:
        line = f"b_ds = tl.where({seen}, b_ds, 0.0)"
        builder.map("b_ds", STEP, SQUARE, line, name="visible gradient", reads=("b_ds",))


def _product(left: str, right: str, channels: str) -> tuple[Operand, Operand]:
    """The operands of left @ right^T."""
    return (
        Operand(left, left, ("BC", channels)),
        Operand(right, f"tl.trans({right})", (channels, "BC"), transposed=True),
    )


def row_gradients(builder: GraphBuilder, facts: GradientFacts) -> None:
    """dq from the chunk's own keys; where a decay has a gradient, each row's exponents first."""
    if facts.derivation.decay:
        note = "gradient of the exponents, by rows; a token with itself has no decay"
        builder.map("b_r", STEP, ("BC",), *_apart("b_r = "), reads=("b_dw", "b_p"), note=note)
    square = Operand("b_ds", "b_ds.to(b_k.dtype)", SQUARE)
    builder.dot(
        "b_dq", STEP, ("BC", "BK"), square, Operand("b_k", "b_k", ("BC", "BK")),
        note="[BC, BC] @ [BC, BK]",
    )  # fmt: skip


def key_exponents(builder: GraphBuilder, facts: GradientFacts) -> None:
    """Where a decay has a gradient, what each row gained less what each key lost."""
    if facts.derivation.decay:
        builder.load(
            "b_r", STEP, ("BC",), tensor="drows", guard="m_t", reads=("p_q",),
            address=f"drows + (i_b * HQ + i_h) * {facts.tokens} + o_t",
        )  # fmt: skip
        note = "gradient of the exponents: what each row gained less what each key lost"
        builder.map(
            "b_r", STEP, ("BC",), *_apart("b_r = b_r - "), name="keys' exponents",
            reads=("b_dw", "b_p", "b_r"), note=note,
        )  # fmt: skip


def _apart(start: str) -> tuple[str, ...]:
    """Sum the exponents' gradients of each pair of two tokens.

    A token with itself would stand in both sums, where gates are strong larger than all else.
    """
    return (
        "b_x = tl.where(r_c[:, None] == r_c[None, :], 0.0, b_dw * b_p)",
        f"{start}tl.sum(b_x, 1)",
    )
