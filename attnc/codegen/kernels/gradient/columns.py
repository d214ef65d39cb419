"""The `dkv` pass: a program holds BS keys, folds query tiles of every head that reads them.

The heads of a group are summed in order, in registers: no copy a query head, and no atomics. Fused,
as `dqkv`, it adds what its keys give dq to an fp32 sum, to which other programs add at any time.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.expression.printer import number
from attnc.codegen.graph import FINISH, HEAD, SETUP, STEP, TAIL, GraphBuilder, Operand
from attnc.codegen.index import Axis, Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_weights import load_key_gates
from attnc.codegen.kernels.gradient.border import (
    add_folded_keys,
    folded_keys_arguments,
    folded_keys_lines,
    pair_constants,
    rows_of,
)
from attnc.codegen.kernels.gradient.channel_tiles import fold_channels
from attnc.codegen.kernels.gradient.facts import HEAD_OF_GROUP, GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import chain, gradient_buffers
from attnc.codegen.kernels.gradient.fused_rows import row_sum
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
from attnc.codegen.kernels.gradient.rows import (
    declared_loads,
    row_statistics,
    scale_outputs,
    statistics,
)
from attnc.codegen.kernels.gradient.side import COLUMNS
from attnc.codegen.kernels.gradient.value_gradient import (
    finish_value,
    start_value,
    value_accumulator,
    value_arguments,
)
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features
from attnc.codegen.kernels.terms import Part, factor_nodes, map_held, over_tiles
from attnc.codegen.kernels.value import (
    load_value,
    map_value,
    setup_nodes,
    value_axes,
    with_tensors,
)

_VALUES = value_axes(Axis("o_s", "row", guard="m_s", tile="BS"), HEAD)
GROUP = "for i_g in range(HQ // HKV):"


def columns_kernel(facts: GradientFacts, *, fused: bool = False) -> Kernel:
    """dk and dv at head dims (K, V); `fused` with dq's sum over keys, by atomic adds."""
    builder = GraphBuilder("dkv")
    loaded = declared_loads(facts, COLUMNS)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    values = load_value(facts.variant, facts.algebra, _VALUES)
    setup_nodes(builder, values)
    _load_keys(builder, facts)
    parts = facts.parts
    totals = [(name, "BK", "K") for name in gradient_buffers(parts, "b_dk")]
    for name, column, dim in (*totals, ("b_dv", "BV", "V")):
        line = f"{name} = tl.zeros([BS, {column}], ACC)"
        builder.fold(name, SETUP, ("BS", column), line, note=f"accumulator, {dim} channels")
    _head(builder, facts)
    builder.extend(node for node in loaded.nodes if node.region == HEAD)
    guard = join_guards("m_s[:, None]", facts.v_mask)
    map_value(
        builder, facts.algebra, values, facts.printer, HEAD, ("BS", "BV"),
        source="b_vx", guard=guard,
    )  # fmt: skip
    start_value(builder, facts, HEAD, "BS")
    factor_nodes(builder, parts, loaded, facts.printer, region=HEAD, logs=False)
    add_folded_keys(builder, facts)
    read = part_setup(builder, facts, COLUMNS, loaded)
    start_sums(builder, facts, COLUMNS)
    start_rate(builder, facts, COLUMNS)
    for part, loads in zip(parts, read, strict=True):
        builder.walk = part.number
        own = facts.of_part(part)
        _load_queries(builder, facts, own)
        builder.extend(node for node in loads.nodes if node.region == STEP)
        pair_step(builder, own, part, COLUMNS, loads)
        add_sums(builder, own, COLUMNS)
        add_rate(builder, own, COLUMNS)
        _fold(builder, value_accumulator(facts), part)
        if fused:
            _add_rows(builder)
        if facts.algebra.by_channel:
            fold_channels(builder, facts, COLUMNS)
    builder.walk = 0
    finish_value(builder, facts, values, TAIL, "BS", token="o_s", guard="m_s",
                 tokens=facts.keys)  # fmt: skip
    store_sums(builder, facts, COLUMNS)
    store_rate(builder, facts, COLUMNS, read[0].bindings)
    _store(builder, facts)
    scalars = ("TQ", "TK", "HQ", "HKV", *(("HS",) if "gates" in statistics(facts) else ()))
    tensors = with_tensors(_tensors(facts, loaded), values)
    if fused:
        tensors = (*tensors, replace(row_sum(), written=True))
    name, constants = "dqkv" if fused else "dkv", pair_constants(facts)
    kernel = Kernel(name, "", tensors, scalars, constants, builder.build(), outer=GROUP)
    return packed_pass(over_tiles(kernel, parts, facts.declared, rows_of(facts)), facts)


def _tensors(facts: GradientFacts, loaded: Loaded) -> tuple[TensorArgument, ...]:
    known = facts.tensors()
    names = ["q", "k", "v", *statistics(facts), "do"]
    names += ["delta"] if facts.softmax or facts.summed else []
    return (
        *(known[name] for name in names),
        *loaded.tensors,
        *folded_keys_arguments(facts),
        TensorArgument("dk", (), "io", "[B, TK, HKV, K]", written=True),
        TensorArgument("dv", (), "io", "[B, TK, HKV, V]", written=True),
        *sum_arguments(facts, COLUMNS),
        *rate_arguments(facts, COLUMNS),
        *value_arguments(facts),
    )


def _load_keys(builder: GraphBuilder, facts: GradientFacts) -> None:
    shape = ("BS", "BK")
    guard = join_guards("m_s[:, None]", facts.k_mask)
    stride = ("stride_k_t", "stride_k_k")
    builder.add(load_tile("b_k", "p_k", stride, ("r_s", "o_k"), shape, SETUP, guard=guard))
    map_held(builder, facts.parts, facts.printer, of="b_k", guard=guard)
    shape = ("BS", "BV")
    guard = join_guards("m_s[:, None]", facts.v_mask)
    stride = ("stride_v_t", "stride_v_v")
    raw = "b_v" if facts.algebra.value is None else "b_vx"
    builder.add(load_tile(raw, "p_v", stride, ("r_s", "o_v"), shape, SETUP, guard=guard))


def _head(builder: GraphBuilder, facts: GradientFacts) -> None:
    lines = [HEAD_OF_GROUP]
    lines.append("p_q = q + i_b * stride_q_b + i_h * stride_q_h")
    lines.append("p_do = do + i_b * stride_do_b + i_h * stride_do_h")
    for name in [name for name in statistics(facts) if name != "gates"]:
        lines.append(f"p_{name} = {name} + (i_b * HQ + i_h) * {facts.rows}")
    if facts.softmax or facts.summed:
        lines.append(f"p_delta = delta + (i_b * HQ + i_h) * {facts.rows}")
    lines += folded_keys_lines(facts)
    reads: tuple[str, ...] = ()
    if "gates" in statistics(facts):
        apart = " * K" if facts.algebra.by_channel else ""
        lines.append(f"p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * {facts.keys}{apart}")
    builder.map("p_q", HEAD, (), *lines, name="head", reads=reads)
    if facts.algebra.decay == "gated":
        builder.load(
            "b_gj", HEAD, ("BS",), dtype="fp64", tensor="gates", guard="m_s", reads=("p_q",),
            address="p_gates + o_s", note="summed log2 decay of the keys",
        )  # fmt: skip
    elif facts.algebra.by_channel:
        load_key_gates(builder, HEAD)


def _load_queries(builder: GraphBuilder, facts: GradientFacts, own: GradientFacts) -> None:
    """A tile of queries, mapped as the weight of `own` has them, and what `facts` keep of rows."""
    shape = ("BT", "BK")
    builder.add(
        load_tile(
            "b_q", "p_q", ("stride_q_t", "stride_q_k"), ("r_t", "o_k"), shape, STEP,
            guard=facts.k_mask, edge_guard="m_t[:, None]", start="i_t",
        )
    )  # fmt: skip
    # padded rows of phi(q) meet do = 0
    phi, guard = own.algebra.phi, facts.k_mask
    builder.extend(
        map_features("b_q", phi, shape, STEP, facts.printer, guard=guard, edge_guard="m_t[:, None]")
    )
    shape = ("BT", "BV")
    builder.add(
        load_tile(
            "b_do", "p_do", ("stride_do_t", "stride_do_v"), ("r_t", "o_v"), shape, STEP,
            guard=facts.v_mask, edge_guard="m_t[:, None]", start="i_t",
        )
    )  # fmt: skip
    row_statistics(builder, facts, COLUMNS)
    if own.algebra.family == "state":
        inverse_norm(builder, facts, COLUMNS)
    if facts.softmax or facts.summed:
        builder.load("b_d", STEP, ("BT",), tensor="delta", address="p_delta + o_t", guard="m_t")
    scale_outputs(builder, facts, STEP, shape)


def _fold(builder: GraphBuilder, values: str, part: Part) -> None:
    for name, total, tile, other, column in (
        ("dv", values, "b_p", "b_do", "BV"),
        ("dk", part.query.replace("b_q", "b_dk"), "b_g", "b_q", "BK"),
    )[: 1 if part.algebra.by_channel else 2]:
        left = Operand(tile, f"{tile}.to({other}.dtype)", ("BS", "BT"))
        right = Operand(other, other, ("BT", column))
        builder.dot(
            total, STEP, ("BS", column), left, right, name=f"fold {name}",
            into=total, carried=True, note=f"[BS, BT] @ [BT, {column}]",
        )  # fmt: skip


def _add_rows(builder: GraphBuilder) -> None:
    """What the keys of the program give dq, added to what other programs add."""
    left = Operand("b_g", "tl.trans(b_g).to(b_k.dtype)", ("BT", "BS"), transposed=True)
    right = Operand("b_k", "b_k", ("BS", "BK"))
    shape = ("BT", "BK")
    builder.dot("b_dq", STEP, shape, left, right, name="dq of keys", note="[BT, BS] @ [BS, BK]")
    builder.store(
        STEP, shape, "b_dq", name="add dq", reads=("b_dq",), tensor="dq_sum",
        address="p_dq_sum + r_t[:, None] * HQ * K + o_k[None, :]",
    )  # fmt: skip


def _store(builder: GraphBuilder, facts: GradientFacts) -> None:
    shape = ("BS", "BK")
    guard = join_guards("m_s[:, None]", facts.k_mask)
    if facts.scaled_last:
        line = f"b_dk = b_dk * {number(facts.scale)}"
        note = "ds/dk = scale * q"
        builder.map("b_dk", FINISH, shape, line, name="scale dk", reads=("b_dk",), note=note)
    mapped = [part for part in facts.parts if part.algebra.phi is not None]
    if mapped:
        place = "p_k + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k"
        builder.load("b_kx", FINISH, shape, tensor="k", dtype="io", address=place, guard=guard)
    for part in mapped:
        gradient = part.query.replace("b_q", "b_dk")
        chain(builder, facts.of_part(part), FINISH, shape, gradient, "b_kx", into="b_dk")
    builder.store(
        FINISH, shape, "b_dk.to(dk.dtype.element_ty)", name="store dk", reads=("b_dk",),
        tensor="dk", guard=guard, note="[BS, BK]",
        address="p_dk + r_s[:, None] * HKV * K + o_k[None, :]",
    )  # fmt: skip
    builder.store(
        FINISH, ("BS", "BV"), "b_dv.to(dv.dtype.element_ty)", name="store dv", reads=("b_dv",),
        tensor="dv", guard=join_guards("m_s[:, None]", facts.v_mask), note="[BS, BV]",
        address="p_dv + r_s[:, None] * HKV * V + o_v[None, :]",
    )  # fmt: skip
