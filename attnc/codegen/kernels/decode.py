"""The `decode` pass: one token's rows over the keys of a cache, and the token into the cache.

A program holds the query heads of one key/value head, so that each key is loaded once, and a share
of the tiles of keys; `combine` puts the shares together. The rows of its tiles are heads where
those of the online form are tokens, and the fold is the same, of every term of a sum too.
Source: Flash-Decoding (Dao et al. 2023, pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Node, Operand
from attnc.codegen.index import Axis, Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.key_tile import score_keys
from attnc.codegen.kernels.online import finish_online, start_online
from attnc.codegen.kernels.operand import join_guards, map_features, ragged_columns
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
from attnc.codegen.text.printer import Printer
from attnc.codegen.tile_range import KeyLoop, KeyRange, Runs, key_range
from attnc.dsl.variant import Variant

CACHES = ("contiguous", "ring", "paged")
# b_i is the new token's position in every row, i_h a row's query head
AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", "row", guard="m_t", tile="BT"),
    "hkv": Axis("i_hkv", ""),
    "row": Axis("i_t", ""),
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
) -> Kernel:
    """One program: the query heads of one key/value head over one split of its keys."""
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
    factor_nodes(builder, parts, loaded, printer, logs=True, heads=True)
    _start(builder, algebra, loaded, printer, split=split)
    for part in parts:
        builder.walk = part.number
        read = loads_of(part, loaded)
        _load_keys(builder, cache, k_mask)
        shape = ("BS", "BK")
        builder.extend(map_features("b_k", part.algebra.phi, shape, STEP, printer, guard=k_mask))
        score_keys(builder, part.query)
        builder.extend(node for node in read.nodes if node.region == STEP)
        scale = part.variant.scale.value(dims[0])
        weights = term_step(builder, part, scale, read, printer, UNSCALED, heads=True)
        _fold_values(builder, cache, weights, v_mask)
    builder.walk = 0
    # a split that saw nothing has no sum, whatever the sink of the first one
    finish_online(builder, replace(algebra, sink=None) if split else algebra)
    builder.store(
        FINISH, ("BT", "BV"), "b_o.to(o.dtype.element_ty)",
        name="store o", reads=("b_o",), tensor="o", note="[BT, BV]",
        address="p_o + r_t[:, None] * V + o_v[None, :]",
        guard="m_t[:, None] & m_v[None, :]",
    )  # fmt: skip
    _append(builder, cache, split=split)
    scalars = ("HQ", "HKV", "C", *(("P",) if cache == "paged" else ()), *(("NS",) if split else ()))
    constants = ("K", "V", "BT", "BS", "BK", "BV")
    kernel = Kernel(
        "decode", "", _tensors(loaded, cache, split), scalars, constants, builder.build()
    )

    def share(part: Part) -> KeyRange:
        # documents are compared where positions allow: one row is too little to list tiles for
        return _shared(key_range(replace(part.algebra.mask, documents=())), split=split)

    return over_tiles(kernel, parts, declared, share)


def _tensors(loaded: Loaded, cache: str, split: bool) -> tuple[TensorArgument, ...]:
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
    if split:
        layout = "[B, NS, HQ, V]: the rows of each split"
        tensors.append(TensorArgument("o", (), "acc", layout, written=True, given="parts"))
        layout = "[B, NS, HQ]: natural log"
        tensors.append(TensorArgument("lse", (), "acc", layout, written=True, given="part_lse"))
    else:
        tensors.append(TensorArgument("o", (), "io", "[B, 1, HQ, V]", written=True))
        tensors.append(TensorArgument("lse", (), "acc", "[B, HQ, 1]: natural log", written=True))
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


def _start(
    builder: GraphBuilder, algebra: Algebra, loaded: Loaded, printer: Printer, *, split: bool
) -> None:
    """The fold before the first key; the first split's begins with the sink."""
    rows = {name: text.replace("[:, None]", "") for name, text in loaded.bindings.items()}
    flat = Loaded(loaded.nodes, rows, loaded.tensors)
    if split and algebra.sink is not None:
        sink_node(builder, algebra, flat, printer)
        line = 'b_m = tl.zeros([BT], ACC) + tl.where(i_n == 0, b_sink, float("-inf"))'
        note = "running maximum, in log2: the sink is the first key of the first split"
        builder.fold("b_m", SETUP, ("BT",), line, reads=("b_sink",), note=note)
        line = "b_l = tl.zeros([BT], ACC) + tl.where(i_n == 0, 1.0, 0.0)"
        builder.fold("b_l", SETUP, ("BT",), line, note="running sum")
    else:
        start_online(builder, algebra, flat, printer)
    # past the capacity no key is read: the row says so
    line = 'b_o = tl.zeros([BT, BV], ACC) + tl.where(TK > 0, 0.0, float("nan"))'
    builder.fold("b_o", SETUP, ("BT", "BV"), line, note="accumulator, NaN past the capacity")


def _slot_lines(cache: str, position: str) -> list[str]:
    """`o_c` = where a position stands in its cache or page; `b_page` = which page."""
    wide = "tl.cast({}, tl.int64)"
    if cache == "contiguous":
        return [f"o_c = {wide.format(position)}"]
    if cache == "ring":
        return [f"o_c = {wide.format(f'{position} % C')}"]
    page = f"p_table + {position} // P * stride_block_table_n"
    load = f"tl.load({page}, mask={position} < TK, other=0)"
    return [f"b_page = {load}.to(tl.int64)", f"o_c = {wide.format(f'{position} % P')}"]


def _slot(cache: str, tensor: str, mark: str) -> str:
    place = f"o_c{mark} * stride_{tensor}_t"
    if cache == "paged":
        place = f"b_page{mark} * stride_{tensor}_p + {place}"
    return place


def _load_keys(builder: GraphBuilder, cache: str, k_mask: str) -> None:
    note = "where these positions stand in the cache"
    builder.map("o_c", STEP, ("BS",), *_slot_lines(cache, "o_s"), dtype="i32", note=note)
    builder.add(_load_tile(cache, "k", "key_cache", ("BS", "BK"), k_mask))
    new = "b_k = tl.where((o_s == i_p)[:, None], b_kn[None, :], b_k)"
    note = "the new token is not in the cache yet"
    builder.map(
        "b_k", STEP, ("BS", "BK"), new, dtype="io", name="new key", reads=("b_k", "b_kn"), note=note
    )


def _load_tile(cache: str, name: str, tensor: str, shape: tuple[str, str], guard: str) -> Node:
    pointer = f"p_{name}t"
    rows = f"{pointer} = p_{tensor} + {_slot(cache, tensor, '')}"
    return Node(
        f"load b_{name}", "load", f"b_{name}", STEP, shape, "io", reads=("o_c",), lines=(rows,),
        address=f"{pointer}[:, None] + o_{name}[None, :] * stride_{tensor}_{name}", guard=guard,
        edge_guard="m_s[:, None]", tensor=tensor, note=f"[{', '.join(shape)}]",
    )  # fmt: skip


def _fold_values(builder: GraphBuilder, cache: str, weights: str, v_mask: str) -> None:
    builder.add(_load_tile(cache, "v", "value_cache", ("BS", "BV"), v_mask))
    new = "b_v = tl.where((o_s == i_p)[:, None], b_vn[None, :], b_v)"
    builder.map("b_v", STEP, ("BS", "BV"), new, dtype="io", name="new value", reads=("b_v", "b_vn"))
    left = Operand(weights, f"{weights}.to(IO)", ("BT", "BS"))
    right = Operand("b_v", "b_v", ("BS", "BV"))
    builder.dot(
        "b_o", STEP, ("BT", "BV"), left, right,
        name="values", into="b_o", carried=True, note="[BT, BS] @ [BS, BV]",
    )  # fmt: skip


def _append(builder: GraphBuilder, cache: str, *, split: bool) -> None:
    """The first split keeps the token: no program reads its slot."""
    alone = "(TK > 0) & (i_n == 0)" if split else "TK > 0"
    lines = [*_slot_lines(cache, "i_p"), f"n_k = tl.where({alone}, K, 0)"]
    builder.map("n_k", FINISH, (), *lines, f"n_v = tl.where({alone}, V, 0)", note="into the cache")
    for name, tensor, columns in (("k", "key_cache", "BK"), ("v", "value_cache", "BV")):
        place = f"p_{tensor} + {_slot(cache, tensor, '')}"
        builder.store(
            FINISH, (columns,), f"p_{name}n = {place}", f"b_{name}n", name=f"store b_{name}n",
            reads=(f"b_{name}n", "n_k"), tensor=tensor,
            address=f"p_{name}n + o_{name} * stride_{tensor}_{name}", guard=f"o_{name} < n_{name}",
        )  # fmt: skip


def _shared(ranges: KeyRange, *, split: bool) -> KeyRange:
    """The walk of one row: what it sees is one masked loop, or this split's share of it."""
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


def combine_kernel(split_rows: str = "BN") -> Kernel:
    """The rows of all splits as one, in order: one program a query head."""
    builder = GraphBuilder("combine")
    builder.load(
        "b_lse", SETUP, (split_rows,), tensor="part_lse", note="the log-sum-exp of every split",
        address="p_lse + r_n * HQ",
    )  # fmt: skip
    builder.load(
        "b_p", SETUP, (split_rows, "BV"), tensor="parts", note="[BN, BV]",
        address="p_parts + r_n[:, None] * HQ * V + o_v[None, :]", guard="m_v[None, :]",
    )  # fmt: skip
    largest = "b_m = tl.max(b_lse, 0)"
    builder.reduce("b_m", SETUP, (), largest, reads=("b_lse",))
    # rows that have seen nothing subtract 0, not -inf
    safe = 'b_ms = tl.where(b_m == float("-inf"), 0.0, b_m)'
    builder.map("b_ms", SETUP, (), safe, reads=("b_m",))
    builder.map("b_w", SETUP, (split_rows,), "b_w = tl.exp(b_lse - b_ms)", reads=("b_lse", "b_ms"))
    builder.reduce("b_l", SETUP, (), "b_l = tl.sum(b_w, 0)", reads=("b_w",))
    whole = "b_o = tl.sum(b_p * b_w[:, None], 0) / tl.where(b_l > 0.0, b_l, 1.0)"
    builder.reduce("b_o", SETUP, ("BV",), whole, reads=("b_p", "b_w", "b_l"))
    builder.store(
        SETUP, ("BV",), "b_o.to(o.dtype.element_ty)", name="store o", reads=("b_o",), tensor="o",
        address="o + i_bh * V + o_v", guard="m_v",
    )  # fmt: skip
    builder.store(
        SETUP, (), "b_ms + tl.log(b_l)", name="store lse", reads=("b_ms", "b_l"), tensor="lse",
        address="lse + i_bh",
    )  # fmt: skip
    tensors = (
        TensorArgument("parts", (), "acc", "[B, NS, HQ, V]"),
        TensorArgument("part_lse", (), "acc", "[B, NS, HQ]"),
        TensorArgument("o", (), "io", "[B, 1, HQ, V]", written=True),
        TensorArgument("lse", (), "acc", "[B, HQ, 1]: natural log", written=True),
    )
    return Kernel("combine", "", tensors, ("HQ",), ("V", "BV", split_rows), builder.build())
