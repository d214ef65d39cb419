"""Variant -> the formula of an output, in LaTeX, and its recurrence where it has one."""

from __future__ import annotations

from fractions import Fraction

from attnc.codegen.algebra import Algebra
from attnc.dsl.expr import Call, Expr, Name, Ref
from attnc.dsl.latex import to_latex
from attnc.dsl.mask import FULL
from attnc.dsl.variant import Variant


def formula(variant: Variant, algebra: Algebra) -> str:
    """The definition: output, weight, normaliser and visible keys, one a line."""
    seen = r"j \in \mathcal{M}_i"
    value = _value(variant, "j")
    by_channel = any("k" in ref.index for ref in algebra.decay_refs)
    decay = r"\,e^{G_i - G_j}" if variant.log_decay is not None and not by_channel else ""
    weight = rf"w_{{ij}}{decay}"
    divided = variant.normalize != "none"
    total = rf"\sum_{{{seen}}} {weight}\, {value}"
    rows = [("o_i", rf"\frac{{1}}{{n_i}} {total}" if divided else total)]
    if divided:
        sink = "" if variant.sink is None else f"e^{{{to_latex(variant.sink)}}} + "
        rows.append(("n_i", rf"{sink}\sum_{{{seen}}} {weight}"))
    rows += _sum(variant) if variant.terms else _weight(variant)
    if by_channel:
        # each channel of a product fades at its own rate
        fades = r"e^{G_{ik} - G_{jk}}"
        plain, mapped = r"q_i \cdot k_j", r"\phi(q_i) \cdot \phi(k_j)"
        summed = rf"\sum_k q_{{ik}}\, k_{{jk}}\, {fades}"
        of_maps = rf"\sum_k \phi(q_{{ik}})\, \phi(k_{{jk}})\, {fades}"
        rows = [(a, b.replace(mapped, of_maps).replace(plain, summed)) for a, b in rows]
    if variant.log_decay is not None:
        name = "G_{ik} - G_{jk}" if by_channel else "G_i - G_j"
        rows.append((name, _distance(variant.log_decay, algebra)))
    everything = variant.mask_form == FULL
    shown = r"\text{all keys}" if everything else rf"\{{\, j : {to_latex(variant.mask)} \,\}}"
    rows.append((r"\mathcal{M}_i", shown))
    return aligned(rows)


def _weight(variant: Variant, term: str = "") -> list[tuple[str, str]]:
    """The weight of a pair and what it is made of; `term` marks those of one term of a sum."""
    s = f"s_{{ij}}{term}"
    scores: list[tuple[str, str]] = []
    if variant.family == "softmax":
        weight = rf"\exp\left({to_latex(variant.score, {'s': s})}\right)"
    elif variant.feature_map.weight is not None:
        plain = variant.score == Name("s")
        score = s if plain else "z_{ij}"
        weight = to_latex(variant.feature_map.weight, {"s": score})
        scores = [] if plain else [(score, to_latex(variant.score, {"s": s}))]
    else:
        weight = _polynomial(variant.feature_map.coefficients, s)
    rows = [(f"w_{{ij}}{term}", weight), *scores, (s, _product(variant, term))]
    phi = variant.feature_map.phi
    if phi is not None:
        rows.append((rf"\phi{term}(x)", to_latex(phi)))
    return rows


def _sum(variant: Variant) -> list[tuple[str, str]]:
    """The weights of all terms, each with its factor, where its own mask shows the pair."""
    parts, rows = [], []
    for number, term in enumerate(variant.terms, 1):
        mark = f"^{{({number})}}"
        factor = "" if term.factor is None else to_latex(term.factor) + r"\,"
        shown = "" if term.mask_form == FULL else rf"\left[\, {to_latex(term.mask)} \,\right]"
        parts.append(rf"{factor}w_{{ij}}{mark}{shown}")
        rows += _weight(term, mark)
    return [("w_{ij}", " + ".join(parts)), *rows]


def recurrence(variant: Variant, algebra: Algebra) -> str:
    """The same by a state that each token folds; empty where no state holds it."""
    if variant.family != "state" or not algebra.legal("recurrent").legal:
        return ""
    keeps = ""
    if variant.log_decay is not None:
        decay = to_latex(Call("exp", (variant.log_decay,)))
        if any("k" in ref.index for ref in algebra.decay_refs):
            decay = rf"\operatorname{{diag}}_k\left({decay}\right)"
        keeps = (
            decay + r"\,"
            if decay.startswith(("e^", r"\operatorname"))
            else rf"\left({decay}\right)"
        )
    value = _value(variant, "t")
    one = variant.normalize == "sum"
    row = rf"\left[{value},\, 1\right]" if one else value
    rows = [("S_t", rf"{keeps}S_{{t-1}} + \psi(k_t)^\top {row}")]
    out = r"\psi_q(q_t)\, S_t"
    if one:
        rows.append((r"\left[y_t,\, n_t\right]", out))
        rows.append(("o_t", "y_t / n_t"))
    else:
        rows.append(("o_t", out))
    return aligned(rows)


def aligned(rows: list[tuple[str, str]]) -> str:
    """Equations one below the other, their sides apart."""
    lines = [rf"{left} &= {right} \\" for left, right in rows]
    lines[-1] = lines[-1].removesuffix(r" \\")
    return "\n".join([r"\begin{aligned}", *lines, r"\end{aligned}"])


def _value(variant: Variant, at: str) -> str:
    """What the key at a token hands over; a token axis is the key's own."""
    row = f"v_{at}"
    return row if variant.value is None else to_latex(variant.value, {"v": row, "t": at})


def _polynomial(coefficients: tuple[Fraction, ...], s: str) -> str:
    parts = []
    for degree, coefficient in enumerate(coefficients):
        if coefficient == 0:
            continue
        base = s if degree < 2 or "^" not in s else rf"\left({s}\right)"
        power = "" if degree == 0 else base if degree == 1 else f"{base}^{{{degree}}}"
        size = abs(coefficient)
        number = "" if size == 1 and power else str(size.numerator)
        if size.denominator != 1:
            number = rf"\tfrac{{{size.numerator}}}{{{size.denominator}}}"
        sign = "-" if coefficient < 0 else "+"
        parts.append(f" {sign} {number}{power}")
    return "".join(parts).removeprefix(" + ").strip()


def _product(variant: Variant, term: str = "") -> str:
    phi = rf"\phi{term}"
    dot = (
        rf"{phi}(q_i) \cdot {phi}(k_j)" if variant.feature_map.phi is not None else r"q_i \cdot k_j"
    )
    if variant.scale.number is None:
        return rf"\frac{{{dot}}}{{\sqrt{{K}}}}"
    return dot if variant.scale.number == 1 else rf"{variant.scale}\; {dot}"


def _distance(log_decay: Expr, algebra: Algebra) -> str:
    text = to_latex(log_decay)
    if not isinstance(log_decay, Call | Ref | Name):
        text = rf"\left({text}\right)"
    return rf"(i - j)\,{text}" if algebra.decay == "constant" else rf"\sum_{{t=j+1}}^{{i}} {text}"
