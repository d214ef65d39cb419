"""The `decode` pass: one token's rows over the keys of a cache, and the token into the cache.

A program holds the query heads of one key/value head, so that each key is loaded once, and a share
of the tiles of keys; `combine` puts the shares together. The rows of its tiles are heads where
those of the online form are tokens, and the fold is the same, of every term of a sum too. One
term of a sum may stand in a state instead, beside a ring for the others (`decode_state`).
Source: Flash-Decoding (Dao et al. 2023, pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import Features
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.index import Axis, Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.cache_slots import append_token, load_slots, slot_lines
from attnc.codegen.kernels.decode_state import start_with_state, state_tensors
from attnc.codegen.kernels.key_tile import score_keys
from attnc.codegen.kernels.online import finish_online, start_online
from attnc.codegen.kernels.operand import join_guards, map_features, ragged_columns
from attnc.codegen.kernels.parallel import divide_rows, start_parallel
from attnc.codegen.kernels.pointwise import finish_split, pointwise_step
from attnc.codegen.kernels.scales import UNSCALED
from attnc.codegen.kernels.sink import load_score, sink_node
from attnc.codegen.kernels.terms import (
    Part,
    factor_nodes,
    load_terms,
    loads_of,
    map_held,
    over_tiles,
    parts_of,
    term_step,
)
from attnc.codegen.kernels.token_features import TokenFacts
from attnc.codegen.tile_range import KeyLoop, KeyRange, Runs, key_range
from attnc.dsl.variant import Variant

# b_i is the new token's position in every row, i_h a row's query head
AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", "row", guard="m_t", tile="BT"),
    "hkv": Axis("i_hkv", ""),
    "row": Axis("i_t", "", wide=True),  # row 0
    "i": Axis("i_p", ""),
    "j": Axis("o_s", "column", edge_guard="m_s", tile="BS", region=STEP),
}


def decode_kernel(
    variant: Variant,
    algebra: Algebra,
    dims: tuple[int, int],
    printer: Printer,
    *,
    cache: str,
    split: bool,
    min_columns: int = 16,
    features: Features | None = None,
) -> Kernel:
    """One program: the query heads of one key/value head over one split of its keys.

    `features` are those of the folded term of a sum, where a state holds it.
    """
    k_mask = ragged_columns("m_k", dims[0])
    v_mask = ragged_columns("m_v", dims[1], min_columns)
    builder = GraphBuilder("decode")
    declared = (*variant.params, *variant.inputs)
    parts = parts_of(variant, algebra)
    load = load_terms if algebra.terms else load_score
    loaded = load(algebra, declared, AXES, sink=True)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    _load_token(builder, k_mask)
    map_held(builder, parts, printer, of="b_q", guard=join_guards("m_t[:, None]", k_mask))
    folded = None if features is None or algebra.folded is None else parts[algebra.folded]
    by_pairs = tuple(part for part in parts if part is not folded)
    factor_nodes(builder, by_pairs, loaded, printer, logs=True, heads=True)
    flat = _flat(loaded)
    facts = None
    if folded is None or features is None:
        _start(builder, algebra, flat, printer, split=split)
    else:
        facts = TokenFacts(folded.variant, folded.algebra, features, dims, printer, row_sums=False)
        factor_nodes(builder, (folded,), flat, printer, logs=False)
        _sink(builder, algebra, flat, printer, split=split)
        start_with_state(builder, algebra, facts, folded, split=split)
    for walk, part in enumerate(by_pairs):
        builder.walk = walk
        read = loads_of(part, loaded)
        _load_keys(builder, cache, k_mask)
        shape = ("BS", "BK")
        builder.extend(map_features("b_k", part.algebra.phi, shape, STEP, printer, guard=k_mask))
        score_keys(builder, part.query)
        builder.extend(node for node in read.nodes if node.region == STEP)
        scale = part.variant.scale.value(dims[0])
        if algebra.family == "pointwise":
            weights = pointwise_step(builder, algebra, scale, read, printer, heads=True)
        else:
            weights = term_step(builder, part, scale, read, printer, UNSCALED, heads=True)
        _fold_values(builder, cache, weights, v_mask)
    builder.walk = 0
    _finish(builder, algebra, split=split)
    builder.store(
        FINISH, ("BT", "BV"), "b_o.to(o.dtype.element_ty)",
        name="store o", reads=("b_o",), tensor="o", note="[BT, BV]",
        address="p_o + r_t[:, None] * V + o_v[None, :]",
        guard="m_t[:, None] & m_v[None, :]",
    )  # fmt: skip
    append_token(builder, cache, split=split)
    scalars = ("HQ", "HKV", "C", *(("P",) if cache == "paged" else ()), *(("NS",) if split else ()))
    constants = ("K", "V", "BT", "BS", "BK", "BV")
    if facts is not None:
        constants = (*constants, "F", *(() if facts.features.direct else ("FP",)))
    state = () if facts is None else state_tensors(facts, algebra.distance)
    tensors = _tensors(algebra, loaded, cache, split, state)
    kernel = Kernel("decode", "", tensors, scalars, constants, builder.build())

    def share(part: Part) -> KeyRange:
        # documents are compared where positions allow: one row is too little to list tiles for
        return _shared(key_range(replace(part.algebra.mask, documents=())), split=split)

    return over_tiles(kernel, by_pairs, declared, share)


def _tensors(
    algebra: Algebra, loaded: Loaded, cache: str, split: bool, state: tuple[TensorArgument, ...]
) -> tuple[TensorArgument, ...]:
    paged = cache == "paged"
    first, rows = ("p", "PAGES, P") if paged else ("b", "B, C")
    axes = (first, "t", "h")
    tensors = [
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, 1, HQ, K]"),
        TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, 1, HKV, K]: the new token's"),
        TensorArgument("v", ("b", "t", "h", "v"), "io", "[B, 1, HKV, V]: the new token's"),
        *loaded.tensors,
        TensorArgument("lengths", (), "i32", "[B]: tokens in the cache"),
        TensorArgument("key_cache", (*axes, "k"), "io", f"[{rows}, HKV, K]", written=True),
        TensorArgument("value_cache", (*axes, "v"), "io", f"[{rows}, HKV, V]", written=True),
    ]
    if paged:
        tensors.append(TensorArgument("block_table", ("b", "n"), "i32", "[B, C / P]: pages"))
    tensors += state
    made: dict[str, tuple[str, str, str]] = {}
    if split:
        made["o"] = "acc", "[B, NS, HQ, V]: the rows of each split", "parts"
        if algebra.has_lse:
            made["lse"] = "acc", "[B, NS, HQ]: natural log", "part_lse"
        elif algebra.normalize == "sum":
            made["norm"] = "acc", "[B, NS, HQ]: sums of weights", "part_norm"
    else:
        made["o"] = "io", "[B, 1, HQ, V]", ""
        if algebra.has_lse:
            made["lse"] = "acc", "[B, HQ, 1]: natural log", ""
    for name, (dtype, layout, given) in made.items():
        tensors.append(TensorArgument(name, (), dtype, layout, written=True, given=given))
    return tuple(tensors)


def _load_token(builder: GraphBuilder, k_mask: str) -> None:
    builder.load(
        "b_q", SETUP, ("BT", "BK"), dtype="io", tensor="q", note="[BT, BK]: a row a query head",
        address="p_q + i_h[:, None] * stride_q_h + o_k[None, :] * stride_q_k",
        guard=join_guards("m_t[:, None]", k_mask),
    )  # fmt: skip
    for name, columns, note in (("k", "BK", "the new token's key and value"), ("v", "BV", "")):
        builder.load(
            f"b_{name}n", SETUP, (columns,), dtype="io", tensor=name, note=note,
            address=f"p_{name} + o_{name} * stride_{name}_{name}", guard=f"m_{name}",
        )  # fmt: skip


def _flat(loaded: Loaded) -> Loaded:
    """The loads with a number a row as a vector, where rows meet no column."""
    rows = {name: text.replace("[:, None]", "") for name, text in loaded.bindings.items()}
    return Loaded(loaded.nodes, rows, loaded.tensors)


def _sink(
    builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer, *, split: bool
) -> None:
    """`b_sink`, the first key of the first split alone."""
    if algebra.sink is None:
        return
    sink_node(builder, algebra, loaded, printer)
    if split:
        line = 'b_sink = tl.where(i_n == 0, b_sink, float("-inf"))'
        note = "the first key of the first split"
        builder.map("b_sink", SETUP, (), line, name="split sink", reads=("b_sink",), note=note)


def _start(
    builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer, *, split: bool
) -> None:
    """The fold before the first key; the first split's begins with the sink."""
    if split and algebra.sink is not None:
        sink_node(builder, algebra, loaded, printer)
        line = 'b_m = tl.zeros([BT], ACC) + tl.where(i_n == 0, b_sink, float("-inf"))'
        note = "running maximum, in log2: the sink is the first key of the first split"
        builder.fold("b_m", SETUP, ("BT",), line, reads=("b_sink",), note=note)
        line = "b_l = tl.zeros([BT], ACC) + tl.where(i_n == 0, 1.0, 0.0)"
        builder.fold("b_l", SETUP, ("BT",), line, note="running sum")
    elif algebra.has_lse:
        start_online(builder, algebra, loaded, printer)
    else:
        start_parallel(builder, algebra)
    # past the capacity no key is read: the row says so
    line = 'b_o = tl.zeros([BT, BV], ACC) + tl.where(TK > 0, 0.0, float("nan"))'
    builder.fold("b_o", SETUP, ("BT", "BV"), line, note="accumulator, NaN past the capacity")


def _finish(builder: GraphBuilder, algebra: Algebra, *, split: bool) -> None:
    """The rows and what they are divided by, or a split's share of both."""
    if algebra.has_lse:
        # a split that saw nothing has no sum, whatever the sink of the first one
        finish_online(builder, replace(algebra, sink=None) if split else algebra)
    elif split:
        finish_split(builder, algebra)
    elif algebra.normalize == "sum":
        divide_rows(builder)


def _load_keys(builder: GraphBuilder, cache: str, k_mask: str) -> None:
    note = "where these positions stand in the cache"
    builder.map("o_c", STEP, ("BS",), *slot_lines(cache, "o_s"), dtype="i32", note=note)
    builder.add(load_slots(cache, "k", "key_cache", ("BS", "BK"), k_mask))
    new = "b_k = tl.where((o_s == i_p)[:, None], b_kn[None, :], b_k)"
    note = "the new token is not in the cache yet"
    builder.map(
        "b_k", STEP, ("BS", "BK"), new, dtype="io", name="new key", reads=("b_k", "b_kn"), note=note
    )


def _fold_values(builder: GraphBuilder, cache: str, weights: str, v_mask: str) -> None:
    builder.add(load_slots(cache, "v", "value_cache", ("BS", "BV"), v_mask))
    new = "b_v = tl.where((o_s == i_p)[:, None], b_vn[None, :], b_v)"
    builder.map("b_v", STEP, ("BS", "BV"), new, dtype="io", name="new value", reads=("b_v", "b_vn"))
    left = Operand(weights, f"{weights}.to(IO)", ("BT", "BS"))
    right = Operand("b_v", "b_v", ("BS", "BV"))
    builder.dot(
        "b_o", STEP, ("BT", "BV"), left, right,
        name="values", into="b_o", carried=True, note="[BT, BS] @ [BS, BV]",
    )  # fmt: skip


def _shared(ranges: KeyRange, *, split: bool) -> KeyRange:
    """The walk of one row: what it sees is one masked loop, or this split's share of it."""
    if not ranges.loops:
        return ranges  # a mask that shows nothing
    start, stop = ranges.loops[0].start, ranges.loops[-1].stop
    lines, runs = _used(ranges.lines), ranges.runs
    if runs is not None:
        runs = Runs(runs.start, _used(runs.lines))
    note = "keys that the row sees: the mask decides at both ends"
    if split:
        whole, before = (stop, "") if start == "0" else (f"{stop} - {start}", f"{start} + ")
        share = (
            "# this split's share of the tiles",
            f"n_s = tl.cdiv(tl.cdiv({whole}, BS), NS) * BS",
            f"start = {before}i_n * n_s",
            f"stop = tl.minimum(start + n_s, {stop})",
        )
        if runs is None:
            lines = (*lines, *share)
        else:
            runs = Runs(runs.start, (*runs.lines, *share))
        start, stop, note = "start", "stop", "keys of this split: the mask decides at both ends"
    return replace(ranges, lines=lines, runs=runs, loops=(KeyLoop(start, stop, True, note),))


def _used(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The bounds without those of full tiles: one row tells no tile that is full from another."""
    kept = [line for line in lines if not line.startswith("full_")]
    return tuple(line.partition(";")[0] if line.startswith("#") else line for line in kept)
