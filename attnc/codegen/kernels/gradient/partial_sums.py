"""Gradients of declared tensors: summed inside a program, then stored for the launcher to reduce.

No two programs write one element and the launcher's sums have a fixed order, so two runs agree
bit for bit. What varies along rows or along nothing is summed by the `dq` pass, what varies along
keys by the `dkv` pass, and what varies along both is stored pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.codegen.derive import VALUE, Partial
from attnc.codegen.expression.printer import number
from attnc.codegen.graph import FINISH, HEAD, SETUP, STEP, TAIL, GraphBuilder
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.gradient.channel_tiles import (
    channel_rate_arguments,
    start_channel_rate,
    store_channel_rate,
)
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.side import ROWS, Side


@dataclass(frozen=True, slots=True)
class PartialSum:
    """One workspace of partial sums.

    `axes` are of letters b, h, i, j, t, c (channels of v), k (channels of k), n (tiles).
    """

    partial: Partial
    axes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The kernel argument."""
        return f"du_{self.partial.label}"

    def argument(self) -> TensorArgument:
        """The workspace as a kernel argument."""
        text = {"b": "B", "h": "HQ", "i": "TQ", "j": "TK", "t": "TK", "n": "NT", "c": "V", "k": "K"}
        layout = f"[{', '.join(text[axis] for axis in self.axes)}]: sums of d {self.partial}"
        return TensorArgument(self.name, (), "acc", layout, written=True)


def partial_sum(partial: Partial) -> PartialSum:
    """Where a derivative is summed, from the letters it is read at."""
    if partial.where == VALUE:
        # a value's are kept a token, and a channel where they are read at one
        pairs = zip(partial.index, partial.declared.shape, strict=True)
        token = next((axis for letter, axis in pairs if letter in {"j", "t"}), "t")
        return PartialSum(partial, ("b", "h", token, *("c" for c in partial.index if c == "c")))
    read = zip(partial.index, partial.declared.shape, strict=True)
    # pairs are stored row by row, whichever of its two axes a tensor declares first
    lanes = tuple(axis for _, axis in sorted(pair for pair in read if pair[0] in {"i", "j", "t"}))
    channels = ("k",) if "k" in partial.index else ()
    return PartialSum(partial, ("b", "h", *(lanes or ("n",)), *channels))


def summed_by(side: Side, partial: Partial) -> bool:
    """Whether this pass sums a derivative."""
    by_keys = "j" in partial.index and "i" not in partial.index
    return by_keys == (side.kernel == "dkv")


def start_sums(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """Accumulators, one number a row of the tile; a head of a group starts anew.

    delta is a sum over the stored output, so its rounding enters every pair of a row alike. It
    shows in what a row's `b_ds` add up to, which is exactly dlse: the `dq` pass keeps that and the
    weighed derivatives too, and `store_sums` takes the rounding out; `dkv` gets delta without it.
    """
    region = SETUP if side.kernel == "dq" else HEAD
    rows = side.tile[0]
    mine = _by_lane(facts, side)
    for partial in mine:
        line = f"b_a_{partial.label} = tl.zeros([{rows}], ACC)"
        note = f"gradient of {partial}"
        builder.fold(f"b_a_{partial.label}", region, (rows,), line, note=note,
                     name=f"start b_a_{partial.label}")  # fmt: skip
    if side.kernel == "dq" and sums_scores(facts):
        for name in ("b_z", *(f"b_w_{partial.label}" for partial in mine)):
            line = f"{name} = tl.zeros([{rows}], ACC)"
            note = "what each row's score gradients add up to" if name == "b_z" else ""
            builder.fold(name, region, (rows,), line, note=note, name=f"start {name}")


def add_sums(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """Add one tile: dscore times the derivative."""
    rows = (side.tile[0],)
    # whichever of them names the statements that make the score's derivatives
    made = ("b_e", "b_p", "b_ls", *(f"b_l_{partial.label}" for partial in facts.derivation.score))
    for partial in _mine(facts, side):
        value = _times("b_ds", partial)
        if {"i", "j"} <= set(partial.index):
            _store_pairs(builder, partial, value, made)
            continue
        _fold(builder, f"b_a_{partial.label}", rows, value, ("b_ds", *made))
        if side.kernel == "dq" and sums_scores(facts):
            _fold(builder, f"b_w_{partial.label}", rows, _times("b_p", partial), made)
    if side.kernel == "dq" and sums_scores(facts):
        _fold(builder, "b_z", rows, "b_ds", ("b_ds", *made))


def _fold(
    builder: GraphBuilder, name: str, rows: tuple[str], value: str, reads: tuple[str, ...]
) -> None:
    line = f"{name} = {name} + tl.sum({value}, 1)"
    builder.fold(name, STEP, rows, line, name=f"fold {name}", reads=(*reads, name))


def _times(value: str, partial: Partial) -> str:
    """`value` times the derivative of the score by a declared tensor."""
    slope = partial.slope
    if slope == 1:
        return value
    return f"{value} * {number(float(slope)) if slope.is_number else f'b_l_{partial.label}'}"


def store_sums(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """What the program summed, at its rows or its tile."""
    mine = _by_lane(facts, side)
    if mine and side.kernel == "dq" and sums_scores(facts):
        labels = [partial.label for partial in mine]
        rest = rounding_of_delta(facts)
        lines = [f"b_a_{label} = b_a_{label} - {rest} * b_w_{label}" for label in labels]
        reads = (
            "b_z",
            "b_dl",
            "b_d",
            "b_de",
            *(f"b_{kind}_{label}" for label in labels for kind in "aw"),
        )
        note = "less what delta's rounding gave each pair of the row"
        builder.map(f"b_a_{labels[0]}", FINISH, (side.tile[0],), *lines, name="rounding of delta",
                    reads=reads, note=note)  # fmt: skip
    for partial in mine:
        label, (*_, lane) = partial.label, partial_sum(partial).axes
        region = FINISH if side.kernel == "dq" else TAIL
        place = {
            "n": (f"du_{label} + i_bh * NT + i_t", ""),
            "i": (f"du_{label} + i_bh * TQ + o_t", "m_t"),
            "t": (f"du_{label} + i_bh * TK + b_i", "m_t & (b_i >= 0)"),
        }
        address, guard = place.get(lane, ("", ""))
        if side.kernel == "dkv":
            address, guard = f"du_{label} + (i_b * HQ + i_h) * {facts.keys} + o_s", "m_s"
        shape = () if lane == "n" else (side.tile[0],)
        value = f"b_a_{label}"
        if lane == "n":
            value = f"tl.sum(tl.where(m_t, b_a_{label}, 0.0), 0)"
        builder.store(
            region, shape, value, name=f"store du_{label}", reads=(f"b_a_{label}",),
            tensor=f"du_{label}", address=address, guard=guard,
        )  # fmt: skip


def rounding_of_delta(facts: GradientFacts) -> str:
    """What all pairs of a row got too much: their score gradients add up to dlse exactly."""
    return "(b_de - b_d)" if exact_for_keys(facts) else "(b_z - b_dl)"


def sum_arguments(facts: GradientFacts, side: Side) -> list[TensorArgument]:
    """The workspaces that this pass writes."""
    return [partial_sum(partial).argument() for partial in _mine(facts, side)]


def _mine(facts: GradientFacts, side: Side) -> list[Partial]:
    return [partial for partial in facts.derivation.score if summed_by(side, partial)]


def _by_lane(facts: GradientFacts, side: Side) -> list[Partial]:
    """Those with one sum a row of the tile."""
    return [part for part in _mine(facts, side) if not {"i", "j"} <= set(part.index)]


def _store_pairs(
    builder: GraphBuilder, partial: Partial, value: str, made: tuple[str, ...]
) -> None:
    axes = dict(zip(partial.index, partial.declared.shape, strict=True))
    row, rows = ("b_i", "TK") if axes["i"] == "t" else ("o_t", "TQ")
    start = f"p_du = du_{partial.label} + (i_bh * {rows} + {row})[:, None] * TK"
    guard = "m_t[:, None] & m_s[None, :]"
    if row == "b_i":
        guard += " & (b_i >= 0)[:, None]"
    builder.store(
        STEP, ("BT", "BS"), start, value,
        name=f"store du_{partial.label}", reads=("b_ds", *made),
        tensor=f"du_{partial.label}", address="p_du + o_s[None, :]", guard=guard,
        note=f"gradient of {partial}, pair by pair",
    )  # fmt: skip


def start_rate(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """The accumulator of a decay's gradient in the parallel form."""
    if not facts.derivation.decay:
        return
    if facts.algebra.by_channel:
        start_channel_rate(builder, side)
    if facts.algebra.decay == "constant" and side.kernel == "dq":
        line = "b_dc = tl.zeros([BT], ACC)"
        builder.fold("b_dc", SETUP, ("BT",), line, note="gradient of the log decay a token")
    elif facts.algebra.decay == "gated":
        rows = side.tile[0]
        line = f"b_r = tl.zeros([{rows}], ACC)"
        region = SETUP if side.kernel == "dq" else HEAD
        note = "sums of the exponents' gradients"
        builder.fold("b_r", region, (rows,), line, note=note, name="start b_r")


def add_rate(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """Add one tile's exponents."""
    if not facts.derivation.decay:
        return
    rows = (side.tile[0],)
    if facts.algebra.decay == "constant" and side.kernel == "dq":
        apart = "(b_i[:, None] - o_s[None, :]).to(ACC)"
        line = f"b_dc = b_dc + tl.sum(b_x * {apart}, 1)"
        builder.fold("b_dc", STEP, rows, line, name="fold b_dc", reads=("b_dc", "b_x"))
    elif facts.algebra.decay == "gated":
        # a token with itself would stand in both sums, where gates are strong larger than all else
        lines = (
            f"m_a = b_i{side.i} != o_s{side.j}",
            "b_r = b_r + tl.sum(tl.where(m_a, b_x, 0.0), 1)",
        )
        note = "a token with itself has no decay"
        builder.fold("b_r", STEP, rows, *lines, name="fold b_r", reads=("b_r", "b_x"), note=note)


def store_rate(
    builder: GraphBuilder, facts: GradientFacts, side: Side, bindings: Mapping[str, str]
) -> None:
    """A constant decay's gradients, or what a later pass sums over the tokens."""
    if not facts.derivation.decay:
        return
    if facts.algebra.by_channel:
        store_channel_rate(builder, facts, side)
        return
    if facts.algebra.decay == "gated":
        target, count = ("rows", "TQ") if side.kernel == "dq" else ("columns", "TK")
        place = f"(i_b * HQ + i_h) * {facts.keys} + o_s"
        place = "i_bh * TQ + o_t" if side.kernel == "dq" else place
        region, guard = (FINISH, "m_t") if side.kernel == "dq" else (TAIL, "m_s")
        builder.store(
            region, (side.tile[0],), "b_r", name=f"store {target}", reads=("b_r",),
            tensor=f"d{target}", address=f"d{target} + {place}", guard=guard,
            note=f"[B, HQ, {count}]",
        )  # fmt: skip
        return
    if side.kernel != "dq":
        return
    builder.reduce("b_dg", FINISH, (), "b_dg = tl.sum(tl.where(m_t, b_dc, 0.0), 0)",
                   reads=("b_dc",), name="sum b_dc")  # fmt: skip
    bound = facts.printer.bound(bindings)
    for partial in facts.derivation.decay:
        lines = bound.statements("b_y", partial.slope)
        builder.store(
            FINISH, (), *lines, "b_dg * b_y", name=f"store du_{partial.label}", reads=("b_dg",),
            tensor=f"du_{partial.label}", address=f"du_{partial.label} + i_bh * NT + i_t",
        )  # fmt: skip


def rate_arguments(facts: GradientFacts, side: Side) -> list[TensorArgument]:
    """The workspaces of a decay's gradient in the parallel form."""
    if not facts.derivation.decay:
        return []
    if facts.algebra.by_channel:
        return channel_rate_arguments(side)
    if facts.algebra.decay == "gated":
        name, count = ("drows", "TQ") if side.kernel == "dq" else ("dcolumns", "TK")
        layout = f"[B, HQ, {count}]: sums of the exponents' gradients"
        return [TensorArgument(name, (), "acc", layout, written=True)]
    if side.kernel != "dq":
        return []
    return [partial_sum(partial).argument() for partial in facts.derivation.decay]


def sums_scores(facts: GradientFacts) -> bool:
    """Whether the `dq` pass adds up each row's score gradients, and knows delta's rounding."""
    whole = facts.whole or facts
    found = whole.derivation
    return whole.softmax and bool(found.score or found.sink or found.factor)


def exact_for_keys(facts: GradientFacts) -> bool:
    """Whether `dkv` gets delta without its rounding: what it sums has to fit what rows sum."""
    by_rows = len(_by_lane(facts, ROWS))
    return sums_scores(facts) and (
        facts.algebra.sink is not None or by_rows < len(facts.derivation.score)
    )
