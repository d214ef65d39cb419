"""The `dq` pass: a program holds BT query rows, folds key tiles and writes dq and delta."""

from __future__ import annotations

from attnc.codegen.expression.printer import number
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.index import Loaded, load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_weights import load_key_gates, load_row_gates
from attnc.codegen.kernels.decay import LOG2E
from attnc.codegen.kernels.gradient.border import (
    add_folded_rows,
    folded_rows_arguments,
    keys_of,
    pair_constants,
)
from attnc.codegen.kernels.gradient.channel_tiles import fold_channels
from attnc.codegen.kernels.gradient.delta import exact_delta, make_delta
from attnc.codegen.kernels.gradient.factor_sums import (
    add_factor,
    factor_arguments,
    start_factors,
    store_factors,
)
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import chain, gradient_buffers
from attnc.codegen.kernels.gradient.packed import packed_pass
from attnc.codegen.kernels.gradient.pairs import pair_step
from attnc.codegen.kernels.gradient.part_pairs import inverse_norm, part_setup
from attnc.codegen.kernels.gradient.partial_sums import (
    add_rate,
    add_sums,
    rate_arguments,
    start_rate,
    start_sums,
    store_rate,
    store_sums,
    sum_arguments,
)
from attnc.codegen.kernels.gradient.side import ROWS, Side
from attnc.codegen.kernels.gradient.sink_sums import (
    sink_arguments,
    sink_matters,
    start_sink,
    store_sink,
)
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features
from attnc.codegen.kernels.sink import load_score
from attnc.codegen.kernels.terms import factor_nodes, load_terms, map_held, over_tiles
from attnc.codegen.kernels.value import (
    STREAMED,
    load_value,
    map_value,
    setup_nodes,
    with_tensors,
)
from attnc.codegen.kernels.visible import document_refs, masked_documents


def rows_kernel(facts: GradientFacts) -> Kernel:
    """dq at head dims (K, V); the `dkv` pass reads the delta that it stores."""
    builder = GraphBuilder("dq")
    loaded = declared_loads(facts, ROWS)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    values = load_value(facts.variant, facts.algebra, STREAMED)
    setup_nodes(builder, values)
    _load_queries(builder, facts)
    row_statistics(builder, facts, ROWS)
    _scale_outputs(builder, facts)
    make_delta(builder, facts)
    parts = facts.parts
    factor_nodes(builder, parts, loaded, facts.printer, logs=False)
    inverse_norm(builder, facts, ROWS)
    read = part_setup(builder, facts, ROWS, loaded)
    for name in gradient_buffers(parts, "b_dq"):
        line = f"{name} = tl.zeros([BT, BK], ACC)"
        builder.fold(name, SETUP, ("BT", "BK"), line, note="accumulator")
    start_sums(builder, facts, ROWS)
    start_rate(builder, facts, ROWS)
    start_factors(builder, facts)
    add_folded_rows(builder, facts)
    start_sink(builder, facts, loaded if facts.algebra.terms else read[0])
    for part, loads in zip(parts, read, strict=True):
        builder.walk = part.number
        own = facts.of_part(part)
        _load_keys(builder, own, values)
        builder.extend(node for node in loads.nodes if node.region == STEP)
        pair_step(builder, own, part, ROWS, loads)
        add_sums(builder, own, ROWS)
        add_factor(builder, own, part)
        add_rate(builder, own, ROWS)
        if facts.algebra.by_channel:
            fold_channels(builder, facts, ROWS)
            continue
        left = Operand("b_g", "b_g.to(b_k.dtype)", ("BT", "BS"))
        right = Operand("b_k", "b_k", ("BS", "BK"))
        total = part.query.replace("b_q", "b_dq")
        builder.dot(
            total, STEP, ("BT", "BK"), left, right,
            name="fold dq", into=total, carried=True, note="[BT, BS] @ [BS, BK]",
        )  # fmt: skip
    builder.walk = 0
    _store(builder, facts)
    exact_delta(builder, facts)
    store_sums(builder, facts, ROWS)
    store_factors(builder, facts, loaded.bindings)
    store_rate(builder, facts, ROWS, read[0].bindings)
    store_sink(builder, facts, read[0].bindings)
    scalars = ("TQ", "TK", "HQ", "HKV", *(("HS",) if "gates" in statistics(facts) else ()))
    tensors = with_tensors(_tensors(facts, loaded), values)
    kernel = Kernel("dq", "", tensors, scalars, pair_constants(facts), builder.build())
    return packed_pass(over_tiles(kernel, parts, facts.declared, keys_of(facts)), facts)


def declared_loads(facts: GradientFacts, side: Side) -> Loaded:
    """Loads of what the score or a constant decay reads, and of what names documents."""
    algebra = facts.algebra
    if algebra.terms:
        return load_terms(algebra, facts.declared, side.axes, sink=side is ROWS)
    if algebra.score is not None:
        sink = side.kernel == "dq" and sink_matters(facts)
        return load_score(algebra, facts.declared, side.axes, sink=sink)
    documents = document_refs(algebra)
    if algebra.decay != "constant":
        loaded = load_refs(documents, facts.declared, side.axes, two_lanes=True)
        return masked_documents(loaded, algebra)
    expression, refs = algebra.log_decay, (*algebra.decay_refs, *documents)
    assert expression is not None
    names = scalar_names(expression, facts.declared)
    loaded = load_refs(refs, facts.declared, side.axes, two_lanes=True, names=names)
    return masked_documents(loaded, algebra, algebra.decay_refs)


def _tensors(facts: GradientFacts, loaded: Loaded) -> tuple[TensorArgument, ...]:
    known = facts.tensors()
    names = ["q", "k", "v", *statistics(facts), "do"]
    if facts.softmax:
        names.insert(-1, "dlse")
    if facts.softmax or facts.summed:
        names.insert(3, "o")
    tensors = [known[name] for name in names]
    tensors += [*loaded.tensors, *folded_rows_arguments(facts)]
    tensors.append(TensorArgument("dq", (), "io", "[B, TQ, HQ, K]", written=True))
    if facts.softmax or facts.summed:
        layout = known["delta"].layout
        tensors.append(TensorArgument("delta", (), "acc", layout, written=True))
    sums = [*sum_arguments(facts, ROWS), *rate_arguments(facts, ROWS), *sink_arguments(facts)]
    return (*tensors, *sums, *factor_arguments(facts))


def statistics(facts: GradientFacts) -> list[str]:
    """What the forward kept of every row."""
    names = ["lse"] if facts.softmax else []
    names += ["norm"] if facts.summed else []
    return names + (["gates"] if facts.algebra.decay in {"gated", "channel"} else [])


def _load_queries(builder: GraphBuilder, facts: GradientFacts) -> None:
    guard = join_guards("m_t[:, None]", facts.k_mask)
    stride = ("stride_q_t", "stride_q_k")
    shape = ("BT", "BK")
    builder.add(load_tile("b_q", "p_q", stride, ("r_t", "o_k"), shape, SETUP, guard=guard))
    map_held(builder, facts.parts, facts.printer, of="b_q", guard=guard)
    guard = join_guards("m_t[:, None]", facts.v_mask)
    stride = ("stride_do_t", "stride_do_v")
    shape = ("BT", "BV")
    builder.add(load_tile("b_do", "p_do", stride, ("r_t", "o_v"), shape, SETUP, guard=guard))


def row_statistics(builder: GraphBuilder, facts: GradientFacts, side: Side) -> None:
    """lse, normaliser and gates of the tile's queries; what is padding weighs nothing."""
    region, lane = side.query, ("BT",)
    ragged = {"guard": "m_t"}
    offset = "r_t" if side.kernel == "dq" else "o_t"
    if facts.softmax:
        padding = f'b_m = tl.where(m_t & (b_m > float("-inf")), b_m * {number(LOG2E)}, BIG)'
        padding = padding.replace("BIG", 'float("inf")')
        builder.load("b_m", region, lane, tensor="lse", address=f"p_lse + {offset}", **ragged)
        note = "in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0"
        builder.map("b_m", region, lane, padding, name="lse", reads=("b_m",), note=note)
    if facts.summed:
        builder.load("b_n", region, lane, tensor="norm", address=f"p_norm + {offset}", **ragged)
        safe = "b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)"
        builder.map("b_n", region, lane, safe, name="normaliser's inverse", reads=("b_n",))
    if facts.algebra.decay == "gated":
        builder.load(
            "b_gi", region, lane, dtype="fp64", tensor="gates", address="p_gates + b_i",
            guard="m_t & (b_i >= 0)", note="summed log2 decay of the rows",
        )  # fmt: skip
    elif facts.algebra.by_channel:
        load_row_gates(builder, region)


def _scale_outputs(builder: GraphBuilder, facts: GradientFacts) -> None:
    scale_outputs(builder, facts, SETUP, ("BT", "BV"))


def scale_outputs(
    builder: GraphBuilder, facts: GradientFacts, region: str, shape: tuple[str, str]
) -> None:
    """do as the weights see it: over the normaliser, or times a linear weight's factor."""
    factor = ""
    if facts.summed:
        factor = "b_n[:, None]"
    elif facts.row_factor != 1.0:
        factor = number(facts.row_factor)
    if factor:
        line = f"b_do = b_do * {factor}"
        reads = ("b_do", "b_n")
        builder.map("b_do", region, shape, line, name="scale do", dtype="io", reads=reads)


def _load_keys(builder: GraphBuilder, facts: GradientFacts, values: Loaded) -> None:
    shape = ("BS", "BK")
    builder.add(
        load_tile(
            "b_k", "p_k", ("stride_k_t", "stride_k_k"), ("r_s", "o_k"), shape, STEP,
            guard=facts.k_mask, edge_guard="m_s[:, None]", start="i_s",
        )
    )  # fmt: skip
    phi, guard = facts.algebra.phi, facts.k_mask
    builder.extend(
        map_features("b_k", phi, shape, STEP, facts.printer, guard=guard, edge_guard="m_s[:, None]")
    )
    builder.add(
        load_tile(
            "b_v", "p_v", ("stride_v_t", "stride_v_v"), ("r_s", "o_v"), ("BS", "BV"), STEP,
            guard=facts.v_mask, edge_guard="m_s[:, None]", start="i_s",
        )
    )  # fmt: skip
    map_value(
        builder, (facts.whole or facts).algebra, values, facts.printer, STEP, ("BS", "BV"),
        guard=facts.v_mask, edge_guard="m_s[:, None]",
    )  # fmt: skip
    if facts.algebra.decay == "gated":
        builder.load(
            "b_gj", STEP, ("BS",), dtype="fp64", tensor="gates", edge_guard="m_s",
            address="p_gates + o_s", note="summed log2 decay of the keys",
        )  # fmt: skip
    elif facts.algebra.by_channel:
        load_key_gates(builder)


def _store(builder: GraphBuilder, facts: GradientFacts) -> None:
    shape = ("BT", "BK")
    guard = join_guards("m_t[:, None]", facts.k_mask)
    if facts.scaled_last:
        line = f"b_dq = b_dq * {number(facts.scale)}"
        note = "ds/dq = scale * k"
        builder.map("b_dq", FINISH, shape, line, name="scale dq", reads=("b_dq",), note=note)
    mapped = [part for part in facts.parts if part.algebra.phi is not None]
    if mapped:
        place = "p_q + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k"
        builder.load("b_qx", FINISH, shape, tensor="q", dtype="io", address=place, guard=guard)
    for part in mapped:
        gradient = part.query.replace("b_q", "b_dq")
        chain(builder, facts.of_part(part), FINISH, shape, gradient, "b_qx", into="b_dq")
    builder.store(
        FINISH, shape, "b_dq.to(dq.dtype.element_ty)", name="store dq", reads=("b_dq",),
        tensor="dq", guard=guard, note="[BT, BK]",
        address="p_dq + r_t[:, None] * HQ * K + o_k[None, :]",
    )  # fmt: skip
