"""What a pass over pairs makes once for all weights of a variant, the terms of a sum or the one."""

from __future__ import annotations

from attnc.codegen.graph import GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.pairs import pair_setup
from attnc.codegen.kernels.gradient.side import Side
from attnc.codegen.kernels.terms import inverse, loads_of

# log2 of the least normaliser that is told from a smaller one: a weight's slope need not be small
# where the weight is, and what is divided by the normaliser stays finite, sums of it too
LEAST = -96


def part_setup(
    builder: GraphBuilder, facts: GradientFacts, side: Side, loaded: Loaded
) -> tuple[Loaded, ...]:
    """Indices as numbers for each weight; its loads, with the texts of all names."""
    found = []
    for part in facts.parts:
        builder.walk = part.number
        found.append(pair_setup(builder, facts.of_part(part), side, loads_of(part, loaded)))
    builder.walk = 0
    return tuple(found)


def inverse_norm(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """`b_n`, by which a weight that is no exponential is multiplied: 0 where nothing was seen."""
    if any(term.family == "state" for term in facts.algebra.terms):
        line = f"b_n = {inverse('b_m', LEAST)}"
        note = "the normaliser's inverse"
        builder.map("b_n", side.query, ("BT",), line, reads=("b_m",), note=note)
