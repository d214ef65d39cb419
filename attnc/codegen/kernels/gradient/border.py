"""What the passes over pairs take of a folded term: its border, and what its state has given.

The walks leave the state's part of dq, dk and dv in workspaces, without the term's factor, and of
each row what its score gradients and its weights there add up to. The passes over pairs start from
them, and walk the pairs that are left; so each gradient has one writer, and one rounding.
"""

from __future__ import annotations

from collections.abc import Callable

from attnc.codegen.border_range import border_keys, border_rows
from attnc.codegen.graph import HEAD, SETUP, GraphBuilder
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.gradient.factor_sums import factor_names
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.partial_sums import sums_scores
from attnc.codegen.kernels.gradient.value_gradient import value_accumulator
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.terms import Part
from attnc.codegen.tile_range import KeyRange, key_range, row_range

_CONSTANTS = ("K", "V", "BT", "BS", "BK", "BV")


def pair_constants(facts: GradientFacts) -> tuple[str, ...]:
    """The constants of a pass over pairs: where a state ends, its chunk and its lag too."""
    return (*_CONSTANTS, "BC", "LAG") if facts.bordered else _CONSTANTS


def keys_of(facts: GradientFacts) -> Callable[[Part], KeyRange]:
    """The key tiles that rows visit for each weight."""
    return lambda part: (border_keys if _folds(facts, part) else key_range)(part.algebra.mask)


def rows_of(facts: GradientFacts) -> Callable[[Part], KeyRange]:
    """The row tiles that keys visit for each weight."""
    return lambda part: (border_rows if _folds(facts, part) else row_range)(part.algebra.mask)


def _folds(facts: GradientFacts, part: Part) -> bool:
    return facts.bordered and part.number == facts.algebra.folded


def folded_part(facts: GradientFacts) -> Part:
    """The term that the state carries."""
    assert facts.algebra.folded is not None, "a term is folded"
    return facts.parts[facts.algebra.folded]


def sums_weights(facts: GradientFacts) -> bool:
    """Whether the folded term's factor has a gradient."""
    return bool(facts.derivation.terms[folded_part(facts).number].factor)


def row_sums(facts: GradientFacts, tokens: str) -> list[TensorArgument]:
    """The workspaces of what a row's pairs in the state add up to, as far as anybody reads them."""
    found = []
    layout = f"[B, HQ, {tokens}]: in the state, the sum of"
    if sums_scores(facts):
        found.append(
            TensorArgument("folded_scores", (), "acc", f"{layout} a row's score gradients")
        )
    if sums_weights(facts):
        found.append(TensorArgument("folded_weights", (), "acc", f"{layout} a row's weights"))
    return found


def state_part(name: str, tokens: str) -> TensorArgument:
    """The workspace of the state's part of one gradient, a query head each."""
    dim = "V" if name == "dv" else "K"
    return TensorArgument(f"folded_{name}", (), "acc", f"[B, {tokens}, HQ, {dim}]: by the state")


def folded_rows_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """What the `dq` pass starts from."""
    return [state_part("dq", "TQ"), *row_sums(facts, "TQ")] if facts.bordered else []


def folded_keys_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """What the `dkv` pass starts from."""
    return [state_part(name, "TK") for name in ("dk", "dv")] if facts.bordered else []


def folded_keys_lines(facts: GradientFacts) -> list[str]:
    """Where the `dkv` pass finds the parts of one query head."""
    if not facts.bordered:
        return []
    start = "((i_b * TK + start_s) * HQ + i_h)"
    parts = {"dk": "K", "dv": "V"}
    return [f"p_folded_{name} = folded_{name} + {start} * {dim}" for name, dim in parts.items()]


def add_folded_rows(builder: GraphBuilder, facts: GradientFacts) -> None:
    """Start dq from the state's part, and the sums of a row from what it adds to them."""
    if not facts.bordered:
        return
    part = folded_part(facts)
    place = "p_folded_dq + r_t[:, None] * HQ * K + o_k[None, :]"
    guard = join_guards("m_t[:, None]", facts.k_mask)
    builder.load(
        "b_fq", SETUP, ("BT", "BK"), tensor="folded_dq", address=place, guard=guard,
        note=f"what the state of term {part.number + 1} has given",
    )  # fmt: skip
    _add(builder, SETUP, part.query.replace("b_q", "b_dq"), "b_fq", ("BT", "BK"), part.factor)
    for argument in row_sums(facts, "TQ"):
        buffer = f"b_f{argument.name.removeprefix('folded_')[0]}"
        builder.load(
            buffer, SETUP, ("BT",), tensor=argument.name, address=f"p_{argument.name} + r_t",
            guard="m_t",
        )  # fmt: skip
    if sums_scores(facts):
        _add(builder, SETUP, "b_z", "b_fs", ("BT",), part.factor)
    if sums_weights(facts):
        total, weight = factor_names(part)
        _add(builder, SETUP, total, "b_fs", ("BT",), "")
        _add(builder, SETUP, weight, "b_fw", ("BT",), "")


def add_folded_keys(builder: GraphBuilder, facts: GradientFacts) -> None:
    """Add the state's part of dk, and of what the values are given, of one query head."""
    if not facts.bordered:
        return
    part = folded_part(facts)
    totals = {"dk": part.query.replace("b_q", "b_dk"), "dv": value_accumulator(facts)}
    for name, total in totals.items():
        dim, mask = ("V", facts.v_mask) if name == "dv" else ("K", facts.k_mask)
        buffer, shape = f"b_f{name[1]}", ("BS", f"B{dim}")
        builder.load(
            buffer, HEAD, shape, tensor=f"folded_{name}", reads=("p_q",),
            address=f"p_folded_{name} + r_s[:, None] * HQ * {dim} + o_{dim.lower()}[None, :]",
            guard=join_guards("m_s[:, None]", mask),
            note=f"what the state of term {part.number + 1} has given" if name == "dk" else "",
        )  # fmt: skip
        _add(builder, HEAD, total, buffer, shape, part.factor)


def _add(
    builder: GraphBuilder, region: str, total: str, part: str, shape: tuple[str, ...], factor: str
) -> None:
    line = f"{total} = {total} + {part}" + (f" * {factor}" if factor else "")
    reads = (total, part, factor) if factor else (total, part)
    builder.fold(total, region, shape, line, reads=reads, name=f"add {part} to {total}")
