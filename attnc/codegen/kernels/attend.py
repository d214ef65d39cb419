"""The kernels that walk over key tiles: `online` (softmax) and `parallel` (other weights).

Both hold BT query rows and fold key tiles one by one, so memory never grows with TQ * TK.
Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1; the parallel form is its sum without exp.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import MIN_TILE
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_gates import WHOLE_LAYOUT
from attnc.codegen.kernels.channel_weights import channel_scores
from attnc.codegen.kernels.key_tile import fold_values, load_keys, load_values, score_keys
from attnc.codegen.kernels.online import finish_online, start_online
from attnc.codegen.kernels.operand import join_guards, load_tile, ragged_columns
from attnc.codegen.kernels.parallel import finish_parallel, parallel_step, start_parallel
from attnc.codegen.kernels.pointwise import pointwise_step
from attnc.codegen.kernels.scales import (
    LEAST_CHANNELS,
    load_scales,
    scale_output,
    widen_values,
)
from attnc.codegen.kernels.sequences import in_sequences
from attnc.codegen.kernels.sink import load_score
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
from attnc.codegen.kernels.value import (
    STREAMED,
    load_value,
    setup_nodes,
    with_tensors,
)
from attnc.codegen.kernels.visible import document_refs, masked_documents
from attnc.codegen.tile_range import key_range
from attnc.dsl.variant import Variant

AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", ""),
    "hkv": Axis("i_hkv", ""),
    "row": Axis("o_t", "row", guard="m_t", tile="BT"),
    "i": Axis("b_i", "row", guard="m_t & (b_i >= 0)", tile="BT"),
    "j": Axis("o_s", "column", edge_guard="m_s", tile="BS", region=STEP),
}


def attend_kernel(
    variant: Variant,
    algebra: Algebra,
    dims: tuple[int, int],
    printer: Printer,
    *,
    min_columns: int = 16,
    out: str = "io",
) -> Kernel:
    """The online or the parallel kernel of a variant at head dims (K, V); `out` is o's type."""
    online = algebra.has_lse
    parts = parts_of(variant, algebra)
    k_mask = ragged_columns("m_k", dims[0], LEAST_CHANNELS if variant.scaled else MIN_TILE)
    v_mask = ragged_columns("m_v", dims[1], min_columns)
    builder = GraphBuilder("online" if online else "parallel")
    loaded = _load_expression(variant, algebra)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    values = load_value(variant, algebra, STREAMED)
    scales = load_scales(variant)
    setup_nodes(builder, values)
    setup_nodes(builder, scales)
    _load_queries(builder, parts, printer, k_mask)
    factor_nodes(builder, parts, loaded, printer, logs=True)
    if online:
        start_online(builder, algebra, loaded, printer)
    else:
        start_parallel(builder, algebra)
    builder.fold("b_o", SETUP, ("BT", "BV"), "b_o = tl.zeros([BT, BV], ACC)", note="accumulator")
    for part in parts:
        builder.walk = part.number
        read = loads_of(part, loaded)
        load_keys(builder, part.algebra, printer, k_mask)
        if algebra.by_channel:
            builder.extend(node for node in read.nodes if node.region == STEP)
            channel_scores(builder, algebra, read)
        else:
            score_keys(builder, part.query)
            builder.extend(node for node in read.nodes if node.region == STEP)
        scale = part.variant.scale.value(dims[0])
        if online:
            weights = term_step(builder, part, scale, read, printer, scales)
        elif algebra.family == "pointwise":
            weights = pointwise_step(builder, algebra, scale, read, printer)
        else:
            weights = parallel_step(builder, algebra, scale, read, printer)
        load_values(builder, algebra, values, printer, v_mask)
        widen_values(builder, algebra)
        fold_values(builder, weights)
    builder.walk = 0

    if online:
        finish_online(builder, algebra)
        scale_output(builder, algebra, scales)
    else:
        finish_parallel(builder, algebra, variant.scale.value(dims[0]))
    builder.store(
        FINISH, ("BT", "BV"), "b_o.to(o.dtype.element_ty)",
        name="store o", dtype=out, reads=("b_o",), tensor="o", note="[BT, BV]",
        address="p_o + r_t[:, None] * HQ * V + o_v[None, :]",
        guard="m_t[:, None] & m_v[None, :]",
    )  # fmt: skip
    summed = algebra.decay in {"gated", "channel"}
    scalars = ("TQ", "TK", "HQ", "HKV", *(("HS",) if summed else ()))
    constants = ("K", "V", "BT", "BS", "BK", "BV")
    tensors = with_tensors(with_tensors(_tensors(algebra, loaded, online, out), values), scales)
    kernel = Kernel(builder.kernel, "", tensors, scalars, constants, builder.build())
    kernel = over_tiles(
        kernel, parts, (*variant.params, *variant.inputs), lambda part: key_range(part.algebra.mask)
    )
    return in_sequences(kernel, algebra)


def _tensors(
    algebra: Algebra, loaded: Loaded, online: bool, out: str
) -> tuple[TensorArgument, ...]:
    tensors = [
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, TQ, HQ, K]"),
        TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, TK, HKV, K]"),
        TensorArgument("v", ("b", "t", "h", "v"), "io", "[B, TK, HKV, V]"),
    ]
    if algebra.decay == "gated":
        tensors.append(TensorArgument("gates", (), "fp64", "[B, HS, TK]: summed log2 decay"))
    elif algebra.by_channel:
        tensors.append(TensorArgument("gates", (), "fp64", WHOLE_LAYOUT))
    tensors.extend(loaded.tensors)
    tensors.append(TensorArgument("o", (), out, "[B, TQ, HQ, V]", written=True))
    if online:
        tensors.append(TensorArgument("lse", (), "acc", "[B, HQ, TQ]: natural log", written=True))
    elif algebra.normalize == "sum":
        tensors.append(
            TensorArgument("norm", (), "acc", "[B, HQ, TQ]: sum of weights", written=True)
        )
    return tuple(tensors)


def _load_expression(variant: Variant, algebra: Algebra) -> Loaded:
    """Loads of what the score reads, or a constant decay; a gated one has its own pass."""
    declared = (*variant.params, *variant.inputs)
    if algebra.terms:
        return load_terms(algebra, declared, AXES, sink=True)
    if algebra.score is not None:
        return load_score(algebra, declared, AXES, sink=True)
    if algebra.decay != "constant":
        loaded = load_refs(document_refs(algebra), declared, AXES, two_lanes=True)
        return masked_documents(loaded, algebra)
    expression, refs = algebra.log_decay, (*algebra.decay_refs, *document_refs(algebra))
    assert expression is not None
    names = scalar_names(expression, declared)
    loaded = load_refs(refs, declared, AXES, two_lanes=True, names=names)
    return masked_documents(loaded, algebra, algebra.decay_refs)


def _load_queries(
    builder: GraphBuilder, parts: tuple[Part, ...], printer: Printer, k_mask: str
) -> None:
    guard = join_guards("m_t[:, None]", k_mask)
    shape = ("BT", "BK")
    builder.add(
        load_tile(
            "b_q", "p_q", ("stride_q_t", "stride_q_k"), ("r_t", "o_k"), shape, SETUP, guard=guard
        )
    )
    map_held(builder, parts, printer, of="b_q", guard=guard)
