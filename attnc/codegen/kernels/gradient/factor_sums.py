"""Gradients of the factors of a sum's terms: by rows, one number a term, times each derivative."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import partial_sum, rounding_of_delta
from attnc.codegen.kernels.terms import Part


def start_factors(builder: GraphBuilder, facts: GradientFacts) -> None:
    """What the rows of a program give each factor that has a gradient, and its weights alone."""
    for part in _wanted(facts):
        for name in factor_names(part):
            line = f"{name} = tl.zeros([BT], ACC)"
            note = f"gradient of the factor of term {part.number + 1}" if name[2] == "x" else ""
            builder.fold(name, SETUP, ("BT",), line, note=note, name=f"start {name}")


def add_factor(builder: GraphBuilder, facts: GradientFacts, part: Part) -> None:
    """Add one tile of a term: its weights without the factor times (do . v - delta)."""
    if not facts.derivation.factor:
        return
    total, weight = factor_names(part)
    for name, value in ((total, "b_p0 * (b_dp - b_d[:, None])"), (weight, "b_p0")):
        line = f"{name} = {name} + tl.sum({value}, 1)"
        reads = (name, "b_p", "b_dp", "b_d", "b_ds")
        builder.fold(name, STEP, ("BT",), line, name=f"fold {name}", reads=reads)


def store_factors(builder: GraphBuilder, facts: GradientFacts, bindings: Mapping[str, str]) -> None:
    """The sums of a program's rows, less delta's rounding, times the derivatives."""
    for part in _wanted(facts):
        total, weight = factor_names(part)
        lines = [
            f"{total} = {total} - {rounding_of_delta(facts)} * {weight}",
            f"{total} = tl.sum(tl.where(m_t, {total}, 0.0), 0)",
        ]
        reads = (total, weight, "b_z", "b_dl", "b_d", "b_de")
        builder.reduce(total, FINISH, (), *lines, reads=reads, name=f"sum {total}")
        factor = part.algebra.factor
        assert factor is not None, "only a factor has derivatives"
        index, texts = index_bindings(factor)
        bound = facts.printer.bound({**bindings, **texts})
        for partial in facts.derivation.terms[part.number].factor:
            slope = bound.statements("b_y", partial.slope)
            builder.store(
                FINISH, (), *index, *slope, f"{total} * b_y", name=f"store du_{partial.label}",
                reads=(total,), tensor=f"du_{partial.label}",
                address=f"du_{partial.label} + i_bh * NT + i_t",
            )  # fmt: skip


def factor_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """The workspaces of the factors' gradients."""
    return [partial_sum(partial).argument() for partial in facts.derivation.factor]


def _wanted(facts: GradientFacts) -> list[Part]:
    terms = facts.derivation.terms
    return [part for part in facts.parts if terms and terms[part.number].factor]


def factor_names(part: Part) -> tuple[str, str]:
    """What a program calls the sums of a factor's gradient, and of the weights without it."""
    return f"b_xf{part.number + 1}", f"b_wf{part.number + 1}"
