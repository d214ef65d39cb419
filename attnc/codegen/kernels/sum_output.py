"""The `sum_output` pass: rows of a sum of terms, chunk by chunk, one of the terms from a state.

What the state weighs enters as if it were the first key of each row: it starts the maximum and the
sum. The pairs that are left fold into both as they do in the online form: those of the other terms,
in the tiles of their own masks, and those at the border of the folded term, whose keys the state
does not hold yet. A key enters LAG chunks after its own, when the whole chunk of rows sees it.
Source: Based (arXiv 2402.18668) for the state, LoLCATs (arXiv 2410.10254) for the sum.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import HEAD, SETUP, STEP, TAIL, GraphBuilder
from attnc.codegen.index import Axis
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.attend import AXES
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.chunk_sequences import chunks_in_sequences
from attnc.codegen.kernels.from_state import read_tile, start_from_state
from attnc.codegen.kernels.key_tile import fold_values, load_keys, load_values, score_keys
from attnc.codegen.kernels.lagging import LAGGING, lagging_values, load_lagging
from attnc.codegen.kernels.monomials import selection_nodes, tile_nodes
from attnc.codegen.kernels.online import finish_online
from attnc.codegen.kernels.operand import join_guards, load_tile
from attnc.codegen.kernels.scales import UNSCALED
from attnc.codegen.kernels.sink import sink_node
from attnc.codegen.kernels.state_fold import fold_tile, load_state
from attnc.codegen.kernels.terms import (
    Part,
    factor_nodes,
    load_terms,
    loads_of,
    map_held,
    parts_of,
    term_step,
)
from attnc.codegen.kernels.value import (
    STREAMED,
    load_value,
    setup_nodes,
    with_tensors,
)
from attnc.codegen.kernels.visible import bound_arguments
from attnc.codegen.tile_range import KeyLoop, KeyRange, key_range
from attnc.dsl.variant import Variant

_AXES = {
    **AXES,
    "row": Axis("b_i", "row", guard="m_t", tile="BT", region=HEAD),
    "i": Axis("b_i", "row", guard="m_t", tile="BT", region=HEAD),
}
_CHUNKS = "for i_c in range(start, stop):"


def sum_output_kernel(variant: Variant, algebra: Algebra, facts: ChunkFacts) -> Kernel:
    """One program: BV columns of one segment of one query head; `facts` are of the folded term."""
    assert algebra.folded is not None
    printer, declared = facts.printer, (*variant.params, *variant.inputs)
    parts = parts_of(variant, algebra)
    folded = parts[algebra.folded]
    builder = GraphBuilder("sum_output")
    loaded = load_terms(algebra, declared, _AXES, sink=True)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    factor_nodes(builder, parts, loaded, printer, logs=True)
    if algebra.sink is not None:
        sink_node(builder, algebra, loaded, printer)
    values = load_value(variant, algebra, STREAMED)
    setup_nodes(builder, values)
    lagging = lagging_values(builder, facts, HEAD)
    load_state(builder, facts)
    _load_rows(builder, facts, parts)
    builder.extend(node for node in loaded.nodes if node.region == HEAD)
    load_lagging(builder, facts, lagging, HEAD)
    for n in range(len(facts.features.tiles)):
        # tile by tile: the features of one alone stand in registers, and what picks them
        builder.extend(selection_nodes(facts.features, weights=True, only=n, region=HEAD))
        _read_state(builder, facts, folded, n)
        if not facts.features.direct:
            builder.extend(
                tile_nodes(
                    facts.features, n, "b_kl", "b_fl", rows="BC", weighted=False, region=HEAD
                )
            )
        fold_tile(builder, facts, n, LAGGING, region=HEAD)
    start_from_state(builder, algebra, folded, facts.dims[0], region=HEAD)
    for part in parts:
        builder.walk = part.number
        read = loads_of(part, loaded)
        load_keys(builder, part.algebra, printer, facts.k_mask)
        score_keys(builder, part.query)
        builder.extend(node for node in read.nodes if node.region == STEP)
        scale = part.variant.scale.value(facts.dims[0])
        weights = term_step(builder, part, scale, read, printer, UNSCALED, rows=HEAD)
        load_values(builder, algebra, values, printer, facts.v_mask)
        fold_values(builder, weights)
    builder.walk = 0
    _finish_rows(builder, algebra)
    tensors = (
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, T, HQ, K]"),
        *facts.key_tensors(),
        *facts.tables(weights=True),
        *loaded.tensors,
        TensorArgument("states", (), "acc", facts.slot_layout),
        TensorArgument("o", (), "io", "[B, T, HQ, V]", written=True),
        TensorArgument("lse", (), "acc", "[B, HQ, T]: natural log", written=True),
    )
    kernel = Kernel(
        "sum_output", "", with_tensors(tensors, values),
        ("T", "HQ", "HKV", "HS", "NS", "CPS"),
        ("K", "V", "BT", "BC", "BS", "BK", "BV", "FP", "LAG"),
        builder.build(),
        outer=_CHUNKS,
        head_lines=("first = i_c * BT", "last = tl.minimum(first + BT, TK) - 1"),
    )  # fmt: skip
    ranges = [_border(part) if part is folded else key_range(part.algebra.mask) for part in parts]
    bounds = tuple(tensor for found in ranges for tensor in bound_arguments(found, declared))
    walks = [(part.note, found) for part, found in zip(parts, ranges, strict=True)]
    return chunks_in_sequences(kernel.over_terms(walks, bounds), algebra)


def _border(folded: Part) -> KeyRange:
    """The tiles of the folded term from where its state ends."""
    ranges = key_range(folded.algebra.mask)
    full, tail = ranges.loops
    lines = ("# the state holds all keys before lo", "lo = tl.maximum(i_c - LAG, 0) * BC")
    full = KeyLoop("lo", full.stop, full.masked, full.note)
    return replace(ranges, lines=(*lines, *ranges.lines), loops=(full, tail))


def _load_rows(builder: GraphBuilder, facts: ChunkFacts, parts: tuple[Part, ...]) -> None:
    lines = ("b_i = i_c * BT + r_t", "m_t = b_i < TK")
    note = "the rows of this chunk"
    builder.map("b_i", HEAD, ("BT",), *lines, dtype="i32", note=note)
    guard = join_guards("m_t[:, None]", facts.k_mask)
    builder.add(
        load_tile(
            "b_q", "p_q", ("stride_q_t", "stride_q_k"), ("r_t", "o_k"), ("BT", "BK"), HEAD,
            guard=guard, start="i_c * BT",
        )
    )  # fmt: skip
    map_held(builder, parts, facts.printer, of="b_q", guard=guard, region=HEAD)


def _read_state(builder: GraphBuilder, facts: ChunkFacts, folded: Part, n: int) -> None:
    """Add features(q) @ h of one tile of features, and features(q) times its sums."""
    features, width = facts.features, str(facts.features.tiles[n].width)
    query = folded.query
    if not features.direct:
        builder.extend(tile_nodes(features, n, query, "b_p", rows="BT", weighted=True, region=HEAD))
        query = f"b_p{n}"
    read_tile(builder, query, n, width, f"b_h{n}.to(IO)", region=HEAD)


def _finish_rows(builder: GraphBuilder, algebra: Algebra) -> None:
    # programs of other columns of v write the same lse
    finish_online(builder, algebra, region=TAIL, address="p_lse + b_i")
    start = "p_ot = p_o + tl.cast(i_c * BT, tl.int64) * HQ * V"
    builder.store(
        TAIL, ("BT", "BV"), start, "b_o.to(o.dtype.element_ty)",
        name="store o", reads=("b_o",), tensor="o", note="[BT, BV]",
        address="p_ot + r_t[:, None] * HQ * V + o_v[None, :]",
        guard="m_t[:, None] & m_v[None, :]",
    )  # fmt: skip
