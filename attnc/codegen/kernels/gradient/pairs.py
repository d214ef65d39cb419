"""One tile of pairs in the backward: weights, and the gradients of score, weight and exponent.

`b_p` is the weight that meets v, `b_g` the gradient of the raw product q.k, `b_ds` (softmax) that
of the score and `b_x` (decayed state) that of the exponent. All are 0 where the mask hides.
Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2, for any score and any polynomial weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from attnc.codegen.border_range import border_line
from attnc.codegen.expression.plane_text import condition
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.decay import LOG2E, constant_decay, index_bindings
from attnc.codegen.kernels.gradient.channel_tiles import channel_step
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.side import Side
from attnc.codegen.kernels.terms import Part, weight_lines
from attnc.codegen.kernels.visible import document_lines
from attnc.codegen.kernels.weight import horner


def pair_setup(builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded) -> Loaded:
    """Indices as numbers, and the rate of a constant decay; `loaded` with their texts added."""
    algebra = facts.algebra
    expression = algebra.log_decay if algebra.score is None else algebra.score
    if expression is None or algebra.decay in {"gated", "channel"}:
        return loaded
    lines, index = index_bindings(expression)
    bindings = {**loaded.bindings, **index}
    reads = tuple(node.buffer for node in loaded.nodes if node.region != STEP)
    if algebra.decay == "constant":
        rate = constant_decay(expression, bindings, facts.printer)
        builder.map("b_c", side.head, (), *lines, *rate, reads=reads, note="log2 decay a token")
        return Loaded(loaded.nodes, bindings, loaded.tensors)
    names = _names(facts)
    before: list[str] = []
    inside: list[str] = []
    for letter, source, region, mark in (
        ("i", "b_i", side.query, side.i),
        ("j", "o_s", side.key, side.j),
    ):
        if letter in names:
            (before if region == SETUP else inside).append(f"f_{letter} = {source}.to(ACC)")
            bindings[letter] = f"f_{letter}{mark}"
    if lines or before:
        note = "indices as numbers, exact to 2**24"
        # what depends on the head alone is cheap enough to stand beside it
        builder.map("f_index", side.head, (), *lines, *before, note=note)
    if inside:
        builder.map("f_step", STEP, (), *inside)
    return Loaded(loaded.nodes, bindings, loaded.tensors)


def _names(facts: GradientFacts) -> set[str]:
    assert facts.algebra.score is not None
    slopes = [partial.slope for partial in facts.derivation.score]
    found = (facts.algebra.score, facts.derivation.score_slope, *slopes)
    return {symbol.name for expr in found if expr is not None for symbol in expr.free_symbols}


def pair_step(
    builder: GraphBuilder, facts: GradientFacts, part: Part, side: Side, loaded: Loaded
) -> None:
    """From q, k, v, do of a tile to `b_p` and `b_g`; the facts are those of the part."""
    if facts.algebra.by_channel:
        channel_step(builder, facts, side, loaded, _seen(facts, side, loaded))
        return
    builder.dot("b_s", STEP, side.tile, *side.pairs(part), note="the scores of the tile again")
    if facts.algebra.family == "softmax":
        _softmax(builder, facts, part, side, loaded)
    elif facts.algebra.family == "pointwise":
        _pointwise(builder, facts, side, loaded)
    elif part.of_sum:
        _term(builder, facts, part, side, loaded)
    else:
        _state(builder, facts, side, loaded)


def _visible(
    builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded, *names: str
) -> None:
    lines = [*_seen(facts, side, loaded)]
    lines += [f"{name} = tl.where(m_st, {name}, 0.0)" for name in names]
    reads = (*names, *(node.buffer for node in loaded.nodes if facts.algebra.mask.documents))
    builder.map(
        names[0], STEP, side.tile, *lines, name=f"visible {names[0]}", reads=reads,
        masked_only=True, note="what the mask hides weighs nothing",
    )  # fmt: skip


def _seen(facts: GradientFacts, side: Side, loaded: Loaded) -> tuple[str, ...]:
    """`m_st` = which pairs of the tile are visible."""
    ragged = f"m_t{side.i} & m_s{side.j}"
    if facts.algebra.mask.clauses == ((),):
        lines = [f"m_st = {ragged}"]
    else:
        seen = condition(facts.algebra.mask, f"b_i{side.i}", f"o_s{side.j}")
        lines = [f"m_st = {seen}", f"m_st = m_st & {ragged}"]
    if facts.bordered:
        lines.append(border_line(f"b_i{side.i}", f"o_s{side.j}"))
    return (*lines, *document_lines(facts.algebra, loaded.bindings, side.i))


def _softmax(
    builder: GraphBuilder, facts: GradientFacts, part: Part, side: Side, loaded: Loaded
) -> None:
    algebra, derivation = facts.algebra, facts.derivation
    assert algebra.score is not None and derivation.score_slope is not None
    slopes = _slopes(facts)
    reads = ("b_s", "f_index", "f_step", *(node.buffer for node in loaded.nodes))
    if algebra.plain_score and not slopes:
        factor = number(facts.scale * LOG2E)
        weights = f"b_p = tl.exp2(b_s * {factor} - b_m{side.i})"
        builder.map("b_p", STEP, side.tile, weights, reads=("b_s", "b_m"), note="exp(score - lse)")
        _visible(builder, facts, side, loaded, "b_p")
    else:
        lines = _score_lines({"b_e": algebra.score, **slopes}, facts, loaded)
        note = "the declared score again, and its derivatives"
        builder.map("b_e", STEP, side.tile, *lines, name="score", reads=reads, note=note)
        weights = f"b_p = tl.exp2(b_e * {number(LOG2E)} - b_m{side.i})"
        builder.map("b_p", STEP, side.tile, weights, reads=("b_e", "b_m"))
        _visible(builder, facts, side, loaded, "b_p", *slopes)
    factor_step(builder, part, side)
    builder.dot("b_dp", STEP, side.tile, *side.outputs, note="do . v")
    line = f"b_ds = b_p * (b_dp - b_d{side.i})"
    note = "gradient of the score"
    builder.map("b_ds", STEP, side.tile, line, reads=("b_p", "b_dp", "b_d"), note=note)
    slope = derivation.score_slope
    factor = "b_ls" if "b_ls" in slopes else number(float(slope))
    line = "b_g = b_ds" if slope == 1 else f"b_g = b_ds * {factor}"
    if part.of_sum and facts.scale != 1.0:
        # each term has a scale of its own: no product at the end serves them all
        line += f" * {number(facts.scale)}"
    builder.map("b_g", STEP, side.tile, line, reads=("b_ds", "b_e"))


def _slopes(facts: GradientFacts) -> dict[str, sympy.Expr]:
    """Derivatives of the score that are no number, by buffer: by s `b_ls`, by tensors `b_l_..`."""
    derivation = facts.derivation
    assert derivation.score_slope is not None
    slopes = {"b_ls": derivation.score_slope}
    slopes |= {f"b_l_{partial.label}": partial.slope for partial in derivation.score}
    return {name: slope for name, slope in slopes.items() if not slope.is_number}


def _score_lines(
    targets: Mapping[str, sympy.Expr], facts: GradientFacts, loaded: Loaded
) -> list[str]:
    """The algebra's score again and its derivatives, a tile of pairs each, by their buffers."""
    score = facts.algebra.score
    assert score is not None
    lines = [f"b_s = b_s * {number(facts.scale)}"]
    lines += shared_lines(targets, {**loaded.bindings, "s": "b_s"}, facts.printer)
    if "s" not in {symbol.name for symbol in score.free_symbols}:
        # of positions alone it still has the shape of a tile
        lines += [f"{name} = b_s * 0.0 + {name}" for name in targets if targets[name] == score]
    return lines


def _pointwise(builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded) -> None:
    """A weight that is any function of the score; `b_ds` is the gradient of the weight.

    The scores alone wait for do . v: the slopes, and the weight where dv needs it, are made after.
    """
    score, slope = facts.algebra.score, facts.derivation.score_slope
    assert score is not None and slope is not None
    product = "b_dp" if facts.summed else "b_ds"
    note = "do . v" if facts.summed else "do . v: gradient of the weight"
    builder.dot(product, STEP, side.tile, *side.outputs, note=note)
    slopes = _slopes(facts)
    made = {"b_p": score, **slopes} if side.kernel == "dkv" else slopes
    reads = ("b_s", "f_index", "f_step", *(node.buffer for node in loaded.nodes))
    if made:
        lines = _score_lines(made, facts, loaded)
        note = "the weight of the declared score, and its derivatives"
        first = next(iter(made))
        builder.map(first, STEP, side.tile, *lines, name="weight", reads=reads, note=note)
        _visible(builder, facts, side, loaded, *made)
    if facts.summed:
        line = f"b_ds = b_dp + b_d{side.i}"
        note = "gradient of the weight"
        builder.map("b_ds", STEP, side.tile, line, reads=("b_dp", "b_d"), note=note)
    if len(slopes) <= len(facts.derivation.score):
        # a derivative that is a number hides nothing
        _visible(builder, facts, side, loaded, "b_ds")
    factor = "b_ls" if "b_ls" in slopes else number(float(slope))
    builder.map("b_g", STEP, side.tile, f"b_g = b_ds * {factor}", reads=("b_ds", *made))


def _term(
    builder: GraphBuilder, facts: GradientFacts, part: Part, side: Side, loaded: Loaded
) -> None:
    """A weight of the state family under the normaliser of a sum, whose inverse is `b_n`.

    The scores alone wait for do . v: weight and slope are polynomials of them, made after it.
    """
    builder.dot("b_dp", STEP, side.tile, *side.outputs, note="do . v")
    lines = weight_lines("b_p", part, facts.scale, factored=False)
    note = "the weight, a polynomial of s, and its gradient times the row's normaliser"
    difference = f"b_dw = b_dp - b_d{side.i}"
    reads = ("b_s", "b_dp", "b_d")
    builder.map("b_p", STEP, side.tile, *lines, name="weight", reads=reads, note=note)
    builder.map("b_dw", STEP, side.tile, difference, reads=("b_dp", "b_d"))
    _visible(builder, facts, side, loaded, "b_p", "b_dw")
    line = f"b_p = b_p * b_n{side.i}"
    builder.map("b_p", STEP, side.tile, line, name="normalise", reads=("b_p", "b_n"))
    factor_step(builder, part, side)
    note = "gradient of the log of the weight"
    builder.map("b_ds", STEP, side.tile, "b_ds = b_p * b_dw", reads=("b_p", "b_dw"), note=note)
    slope = weight_slope_lines("b_w", "b_s", facts)
    text = "b_w" if slope else number(float(facts.derivation.weight_slope[0]) * facts.scale)
    row = f"(b_n * {part.factor}){side.i}" if part.factor else f"b_n{side.i}"
    lines = [*slope, f"b_g = b_dw * {text} * {row}"]
    builder.map("b_g", STEP, side.tile, *lines, reads=("b_dw", "b_n", "b_s", "b_ds"))


def factor_step(builder: GraphBuilder, part: Part, side: Side) -> None:
    """The factor of a term; `b_p0` is the weight without it, which its gradient sums."""
    if part.factor:
        lines = ("b_p0 = b_p", f"b_p = b_p0 * {part.factor}")
        reads = ("b_p", part.factor)
        builder.map("b_p", STEP, side.tile, *lines, name="factor", reads=reads)


def _state(builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded) -> None:
    algebra = facts.algebra
    coefficients, direct = algebra.coefficients, algebra.direct
    lines = list(horner("b_p", "b_s", coefficients, facts.scale, direct=direct))
    slope = weight_slope_lines("b_w", "b_s", facts)
    builder.map(
        "b_p", STEP, side.tile, *lines, *slope, name="weight", reads=("b_s",),
        note="the weight and its derivative, polynomials of s" if slope else "",
    )  # fmt: skip
    if algebra.decay is not None:
        apart = f"b_e = tl.exp2((b_i{side.i} - o_s{side.j}).to(ACC) * b_c)"
        if algebra.decay == "gated":
            apart = f"b_e = tl.exp2((b_gi{side.i} - b_gj{side.j}).to(ACC))"
        reads = ("b_p", "b_c", "b_gi", "b_gj")
        builder.map("b_e", STEP, side.tile, apart, reads=reads, note="decay from key to query")
        _visible(builder, facts, side, loaded, "b_e")
        line = "b_p = b_p * b_e"
        builder.map("b_p", STEP, side.tile, line, name="decay", reads=("b_p", "b_e"))
    else:
        _visible(builder, facts, side, loaded, "b_p")
    builder.dot("b_dp", STEP, side.tile, *side.outputs, note="do . v: gradient of the weight")
    if facts.summed:
        line = f"b_dp = b_dp + b_d{side.i}"
        builder.map("b_dp", STEP, side.tile, line, name="normaliser", reads=("b_dp", "b_d"))
    # a constant decay is summed by rows alone, a gated one by keys too
    if facts.derivation.decay and (side.kernel == "dq" or algebra.decay == "gated"):
        line = "b_x = b_dp * b_p"
        note = "gradient of the exponent of the decay"
        builder.map("b_x", STEP, side.tile, line, reads=("b_dp", "b_p"), note=note)
    factors = (["b_w"] if slope else []) + (["b_e"] if algebra.decay is not None else [])
    line = " * ".join(["b_g = b_dp", *factors])
    builder.map("b_g", STEP, side.tile, line, reads=("b_dp", "b_p", "b_e"))
    if algebra.decay is None:
        _visible(builder, facts, side, loaded, "b_g")


def weight_slope_lines(target: str, score: str, facts: GradientFacts) -> tuple[str, ...]:
    """`target` = d weight / d (q.k); nothing for a linear weight, whose slope is 1."""
    if facts.algebra.direct:
        return ()
    slope, scale = facts.derivation.weight_slope, facts.scale
    if len(slope) == 1:
        return (f"{target} = {number(float(slope[0]) * scale)}",)
    lines = horner(target, score, slope, scale, direct=False)
    return (*lines, f"{target} = {target} * {number(scale)}")


def shared_lines(
    outputs: Mapping[str, sympy.Expr], bindings: Mapping[str, str], printer: Printer
) -> list[str]:
    """Statements of several expressions, what they share computed once."""
    names = (sympy.Symbol(f"b_y{n}", real=True) for n in range(10_000))
    common, results = sympy.cse(list(outputs.values()), symbols=names, order="canonical")
    bound = dict(bindings)
    lines: list[str] = []
    conditions: dict[sympy.Basic, sympy.Basic] = {}
    for name, shared in [*common, *zip(outputs, results, strict=True)]:
        target, value = str(name), shared.xreplace(conditions)
        if isinstance(
            value, sympy.core.relational.Relational | sympy.logic.boolalg.BooleanFunction
        ):
            # a condition is written where it decides: truth values have no buffer of their own
            conditions[name] = value
            continue
        lines += printer.bound(bound).statements(target, value)
        bound[target] = target
    return lines
