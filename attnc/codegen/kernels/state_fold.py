"""The state of a segment, chunk by chunk: where it starts, what enters it, what is kept of it."""

from __future__ import annotations

from attnc.codegen.graph import SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernels.channel_fold import fold_channels
from attnc.codegen.kernels.chunk import KEYS, ChunkFacts, Fold
from attnc.codegen.kernels.operand import join_guards


def fold_state(builder: GraphBuilder, facts: ChunkFacts, fold: Fold = KEYS) -> None:
    """h = decay * h + features^T (decayed value), tile by tile."""
    decay_value(builder, facts, fold)
    for n in range(len(facts.features.tiles)):
        fold_tile(builder, facts, n, fold)


def decay_value(builder: GraphBuilder, facts: ChunkFacts, fold: Fold = KEYS) -> None:
    """What enters the state: the fold's value, decayed to where the state stands."""
    if facts.algebra.decay is None or facts.algebra.by_channel:
        return
    line = f"{fold.ends} = {fold.decay}"
    name = f"ends of {fold.value}"
    builder.map(fold.ends, STEP, ("BC",), line, name=name, reads=("b_g", "b_gl"), note=fold.note)
    builder.map("b_l", STEP, (), "b_l = tl.exp2(b_gl)", reads=("b_gl",))
    value = f"{fold.value}u"
    scaled = f"{value} = {fold.value} * {fold.ends}[:, None]"
    if facts.exact_folds:
        lines = (f"b_ul = {scaled.partition(' = ')[2]}", f"{value} = b_ul.to(IO)",
                 f"b_ul = (b_ul - {value}.to(ACC)).to(IO)")  # fmt: skip
        note = "the decayed value in two parts, its rounding and what that left"
        builder.map(value, STEP, ("BC", "BV"), *lines, reads=(fold.value, fold.ends), note=note)
    else:
        builder.map(value, STEP, ("BC", "BV"), scaled, dtype="io", reads=(fold.value, fold.ends))


def fold_tile(
    builder: GraphBuilder,
    facts: ChunkFacts,
    n: int,
    fold: Fold = KEYS,
    *,
    sums: bool = True,
    region: str = STEP,
) -> None:
    """Tile n of the state, and of its sums where there are some and `sums` wants them."""
    if facts.algebra.by_channel:
        fold_channels(builder, facts, fold)
        return
    decayed = facts.algebra.decay is not None
    value = f"{fold.value}u" if decayed else fold.value
    rows, state, width = facts.features_of(fold, n), f"b_h{n}", facts.state_rows(n)
    if facts.summed and sums:
        _fold_sums(builder, facts, fold, n, region)
    if decayed:
        kept = f"{state} = {state} * b_l"
        name, reads = f"decay {state}", (state, "b_l")
        builder.fold(state, region, (width, "BV"), kept, name=name, reads=reads)
    left = Operand(rows, f"tl.trans({rows})", (width, "BC"), transposed=True)
    right = Operand(value, value, ("BC", "BV"))
    note = f"[{width}, BC] @ [BC, BV]"
    builder.dot(
        state, region, (width, "BV"), left, right,
        name=f"fold {state}", into=state, carried=True, note=note,
    )  # fmt: skip
    if decayed and facts.exact_folds:
        right = Operand(value, "b_ul", ("BC", "BV"))
        builder.dot(
            state, region, (width, "BV"), left, right,
            name=f"fold {state}, the rest", into=state, carried=True,
        )  # fmt: skip


def _fold_sums(builder: GraphBuilder, facts: ChunkFacts, fold: Fold, n: int, region: str) -> None:
    decayed = facts.algebra.decay is not None
    tile, rows, sums = facts.features.tiles[n], facts.features_of(fold, n), f"b_z{n}"
    term = f"{rows}.to(ACC)"
    if fold.weight:
        term = f"{term} * {fold.weight}[:, None]"
    if decayed:
        term = f"{term} * {fold.ends}[:, None]"
    if not facts.features.direct and tile.padded and not fold.weight:
        # the constant feature of a padded row is 1: it must not count
        term = f"tl.where({fold.there}[:, None], {term}, 0.0)"
    kept = f"{sums} * b_l" if decayed else sums
    line = f"{sums} = {kept} + tl.sum({term}, 0)"
    reads = (sums, rows, fold.weight, fold.ends, "b_l")
    builder.fold(sums, region, (facts.state_rows(n),), line, name=f"fold {sums}", reads=reads)


def start_state(builder: GraphBuilder, facts: ChunkFacts) -> None:
    """The state of a segment that is folded from zero."""
    for n, tile in enumerate(facts.features.tiles):
        zeros = f"b_h{n} = tl.zeros([{tile.width}, BV], ACC)"
        note = "the state of this segment, from zero"
        builder.fold(f"b_h{n}", SETUP, (str(tile.width), "BV"), zeros, note=note)
        if facts.summed:
            line = f"b_z{n} = tl.zeros([{tile.width}], ACC)"
            builder.fold(f"b_z{n}", SETUP, (str(tile.width),), line)


def load_state(
    builder: GraphBuilder,
    facts: ChunkFacts,
    *,
    note: str = "the state before this segment",
    sums: bool = True,
) -> None:
    """The carried state; segment 0 starts from zero unless the caller hands a state over.

    Where every query sees every key, it is the sum over all of them.
    """
    whole = facts.stateful or facts.algebra.global_sum
    if facts.algebra.global_sum:
        note = "the sum over all keys"
    for n in range(len(facts.features.tiles)):
        width = facts.state_rows(n)
        rows = (f"r_f{n} = {facts.row_numbers(n)}",)
        builder.load(
            f"b_h{n}", SETUP, (width, "BV"), note=note,
            tensor="states", carried=True, lines=rows,
            address=f"p_states + r_f{n}[:, None] * V + o_v[None, :]",
            guard=join_guards("" if whole else f"(r_f{n}[:, None] < n_f)", facts.v_mask),
        )  # fmt: skip
        if facts.summed and sums:
            builder.load(
                f"b_z{n}", SETUP, (width,), tensor="states", carried=True,
                address=f"p_states + FP * V + r_f{n}",
                guard="" if whole else f"r_f{n} < n_f",
            )  # fmt: skip
