"""Through the declared value: dv and the declared tensors' gradients, from what heads send back.

A program sums d o/d value of one query head in `b_dvh`, then multiplies by the derivatives at v.
"""

from __future__ import annotations

from attnc.codegen.derive import Partial
from attnc.codegen.expression.printer import number
from attnc.codegen.graph import GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.pairs import shared_lines
from attnc.codegen.kernels.gradient.partial_sums import partial_sum


def value_accumulator(facts: GradientFacts) -> str:
    """Where a pass sums what comes back: dv itself, or one head's share of it."""
    return "b_dv" if facts.algebra.value is None else "b_dvh"


def start_value(builder: GraphBuilder, facts: GradientFacts, region: str, rows: str) -> None:
    """An empty sum for the head, where a value is declared."""
    if facts.algebra.value is None:
        return
    line = f"b_dvh = tl.zeros([{rows}, BV], ACC)"
    note = "gradient of what the keys hand this head"
    builder.fold("b_dvh", region, (rows, "BV"), line, name="start b_dvh", note=note, reads=("p_q",))


def finish_value(
    builder: GraphBuilder,
    facts: GradientFacts,
    values: Loaded,
    region: str,
    rows: str,
    *,
    token: str,
    guard: str,
    tokens: str,
) -> None:
    """Add the head's share to dv, and store what it gives every declared tensor.

    `token`, `guard` and `tokens` are the texts of the rows' places, their mask and their number.
    """
    if facts.algebra.value is None:
        return
    slope = facts.derivation.value_slope
    assert slope is not None
    slopes = {"b_vs": slope, **{_name(part): part.slope for part in facts.derivation.value}}
    slopes = {name: slope for name, slope in slopes.items() if not slope.is_number}
    lines, index = index_bindings(facts.algebra.value)
    lines = [*lines, "b_vc = b_vx.to(ACC)"]
    bindings = {**values.bindings, **index, "v": "b_vc"}
    lines += shared_lines(slopes, bindings, facts.printer)
    lines.append(f"b_dv = b_dv + {_times(slope, 'b_vs' if 'b_vs' in slopes else '')}")
    reads = ("b_dv", "b_dvh", "b_vx", *(node.buffer for node in values.nodes))
    builder.fold("b_dv", region, (rows, "BV"), *lines, name="through the value", reads=reads,
                 note="through the declared value")  # fmt: skip
    for partial in facts.derivation.value:
        name = _name(partial)
        term = _times(partial.slope, name if name in slopes else "")
        place = f"((i_b * HQ + i_h) * {tokens} + {token})"
        facts_of = {"name": f"store du_{partial.label}", "tensor": f"du_{partial.label}"}
        if "c" in partial.index:
            builder.store(
                region, (rows, "BV"), term, reads=("b_dv", "b_dvh"), **facts_of,
                address=f"du_{partial.label} + {place}[:, None] * V + o_v[None, :]",
                guard=f"{guard}[:, None] & (o_v < V)[None, :]",
            )  # fmt: skip
            continue
        if facts.v_mask:
            term = f"tl.where({facts.v_mask}, {term}, 0.0)"
        builder.store(
            region, (rows,), f"tl.sum({term}, 1)", reads=("b_dv", "b_dvh"), **facts_of,
            address=f"du_{partial.label} + {place}", guard=guard,
        )  # fmt: skip


def value_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """The workspaces of the value's derivatives."""
    return [partial_sum(partial).argument() for partial in facts.derivation.value]


def sums_channels(facts: GradientFacts) -> bool:
    """Whether a program needs whole rows of v, since a gradient is summed over its channels."""
    return any("c" not in partial.index for partial in facts.derivation.value)


def _name(partial: Partial) -> str:
    return f"b_l_{partial.label}"


def _times(slope: object, name: str) -> str:
    """`b_dvh` times a derivative, a name or a number."""
    if name:
        return f"b_dvh * {name}"
    factor = float(slope)  # type: ignore[arg-type]
    return "b_dvh" if factor == 1.0 else f"b_dvh * {number(factor)}"
