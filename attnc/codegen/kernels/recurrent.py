"""The `recurrent` pass: the state folded token by token, in place, the rows read off it.

It is the definition of the state family as it stands, in fp32 and without a matrix product, and
its one-token case is the decode step: what the state takes in HBM is what a step costs.
Source: Katharopoulos et al. 2020 (arXiv 2006.16236), section 3.4; Based (arXiv 2402.18668).
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.expression.symbolic import ref_symbol
from attnc.codegen.features import Features
from attnc.codegen.graph import FINISH, HEAD, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk_sequences import chunks_in_sequences
from attnc.codegen.kernels.decay import LOG2E, constant_decay, index_bindings
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.token_features import TokenFacts, feature_tables, token_features
from attnc.codegen.kernels.value import setup_nodes, with_tensors
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.variant import Variant

TOKENS = "for i_t in range(T):"
GROUP = KeyLoop("0", "HQ // HS", True, "the query heads that read this state")
SCALARS = ("T", "HQ", "HKV", "HS")
AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", ""),
    "hkv": Axis("i_hkv", ""),
    "t": Axis("o_t", "", region=HEAD, wide=True),
}


def recurrent_kernel(
    variant: Variant,
    algebra: Algebra,
    features: Features,
    dims: tuple[int, int],
    printer: Printer,
    *,
    decode: bool,
) -> Kernel:
    """One program: BV columns of one state head, all tokens in order.

    With `decode`, one token and G query heads a state, both known when compiled: loops of one step
    are none. The normalisers of the rows are then not stored, which only a backward wants.
    """
    facts = TokenFacts(variant, algebra, features, dims, printer, row_sums=not decode)
    builder = GraphBuilder("recurrent")
    feature_tables(builder, facts)
    loaded = _decay_setup(builder, facts)
    values = _value_setup(builder, facts)
    _load_state(builder, facts)
    builder.map("o_t", HEAD, (), "o_t = tl.cast(i_t, tl.int64)")
    _fold(builder, facts, loaded, values)
    _rows(builder, facts)
    _store_state(builder, facts)
    constants = ("K", "V", "BV", "F", *(() if features.direct else ("FP",)))
    group = GROUP
    known: tuple[str, ...] = ()
    if decode:
        group, known = replace(GROUP, stop="G"), ("T", "G")
    scalars = tuple(name for name in SCALARS if name not in known)
    constants = (*constants, *known)
    tensors, graph = with_tensors(_tensors(facts, loaded), values), builder.build()
    kernel = Kernel(
        "recurrent", "", tensors, scalars, constants, graph, loops=(group,), outer=TOKENS
    )
    return chunks_in_sequences(kernel, algebra)


def _tensors(facts: TokenFacts, loaded: Loaded) -> tuple[TensorArgument, ...]:
    tensors = [
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, T, HQ, K]"),
        TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, T, HKV, K]"),
        TensorArgument("v", ("b", "t", "h", "v"), "io", "[B, T, HKV, V]"),
        *loaded.tensors,
    ]
    if not facts.features.direct:
        tensors.append(TensorArgument("index", (), "i32", "[ORDER, FP]: factors of each feature"))
        tensors.append(TensorArgument("weight", (), "fp32", "[FP]: weight of each feature"))
    layout = "[B, HS, F, V]: before the first token, then after the last"
    tensors.append(TensorArgument("state", ("b", "h", "f", "v"), "acc", layout, written=True))
    if facts.summed:
        layout = "[B, HS, F]: the normaliser's state before the first token"
        tensors.append(TensorArgument("sums", ("b", "h", "f"), "acc", layout))
        layout = "the same after the last token"
        tensors.append(TensorArgument("final_sums", ("b", "h", "f"), "acc", layout, written=True))
    tensors.append(TensorArgument("o", (), "io", "[B, T, HQ, V]", written=True))
    if facts.summed and facts.row_sums:
        tensors.append(
            TensorArgument("norm", (), "acc", "[B, HQ, T]: sum of weights", written=True)
        )
    return tuple(tensors)


def _decay_setup(builder: GraphBuilder, facts: TokenFacts) -> Loaded:
    log_decay = facts.algebra.log_decay
    if log_decay is None:
        return Loaded((), {}, ())
    declared = (*facts.variant.params, *facts.variant.inputs)
    width = str(facts.features.tiles[0].width)
    channels = Axis("r_f0", "row", guard=facts.guard(0).replace("F", "K"), tile=width)
    loaded = load_refs(
        facts.algebra.decay_refs, declared, {**AXES, "k": channels},
        two_lanes=False, names=scalar_names(log_decay, declared),
    )  # fmt: skip
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    lines, index = index_bindings(log_decay)
    loaded = Loaded(loaded.nodes, {**loaded.bindings, **index}, loaded.tensors)
    reads = tuple(node.buffer for node in loaded.nodes)
    if facts.algebra.decay == "constant":
        rate = constant_decay(log_decay, loaded.bindings, facts.printer)
        line = "b_l = tl.exp2(b_c)"
        builder.map("b_l", SETUP, (), *lines, *rate, line, reads=reads, note="decay a token")
    elif lines:
        builder.map("f_index", SETUP, (), *lines, note="indices as numbers")
    return loaded


def _value_setup(builder: GraphBuilder, facts: TokenFacts) -> Loaded:
    """Loads of what the declared value reads: numbers, or a channel each."""
    value = facts.algebra.value
    if value is None:
        return Loaded((), {}, ())
    declared = (*facts.variant.params, *facts.variant.inputs)
    channels = Axis("o_v", "column", guard="m_v", tile="BV")
    axes = {**AXES, "j": AXES["t"], "c": channels}
    names = scalar_names(value, declared)
    loaded = load_refs(
        facts.algebra.value_refs, declared, axes, two_lanes=False, names=names, stem="b_uv_"
    )
    setup_nodes(builder, loaded)
    return loaded


def _map_value(builder: GraphBuilder, facts: TokenFacts, loaded: Loaded) -> None:
    """What this token hands over; padding is zero after it, as it need not be where v is 0."""
    value = facts.algebra.value
    if value is None:
        return
    builder.extend(node for node in loaded.nodes if node.region == HEAD)
    lines, index = index_bindings(value)
    bound = facts.printer.bound({**loaded.bindings, **index, "v": "b_vc"})
    lines = [*lines, "b_vc = b_v", *bound.tile("b_v", value, "v")]
    lines.append("b_v = tl.where(m_v, b_v, 0.0)")
    reads = ("b_v", *(node.buffer for node in loaded.nodes))
    note = "what this token hands over"
    builder.map("b_v", HEAD, ("BV",), *lines, name="value", reads=reads, note=note)


def _load_state(builder: GraphBuilder, facts: TokenFacts) -> None:
    for n, tile in enumerate(facts.features.tiles):
        width, rows = str(tile.width), facts.guard(n)
        builder.load(
            f"b_h{n}", SETUP, (width, "BV"), tensor="state", carried=True, reads=(f"r_f{n}",),
            note="" if n else "the state before the first token", address=_state_address(n),
            guard=join_guards(rows and f"({rows})[:, None]", "m_v[None, :]"),
        )  # fmt: skip
        if facts.summed:
            builder.load(
                f"b_z{n}", SETUP, (width,), tensor="sums", carried=True, reads=(f"r_f{n}",),
                address=f"p_sums + r_f{n} * stride_sums_f", guard=rows,
            )  # fmt: skip


def _state_address(n: int) -> str:
    return f"p_state + r_f{n}[:, None] * stride_state_f + o_v[None, :] * stride_state_v"


def _fold(builder: GraphBuilder, facts: TokenFacts, loaded: Loaded, values: Loaded) -> None:
    """h = decay * h + f(k)^T v, and the same of the normaliser's state."""
    line = "p_kt = p_k + o_t * stride_k_t"
    builder.map("p_kt", HEAD, (), line, reads=("o_t",), note="this token enters the state")
    builder.extend(token_features(facts, "k", "b_f", HEAD))
    builder.load(
        "b_v", HEAD, ("BV",), tensor="v", reads=("o_t",), guard="m_v",
        address="p_v + o_t * stride_v_t + o_v * stride_v_v",
    )  # fmt: skip
    _map_value(builder, facts, values)
    decayed = facts.algebra.decay is not None
    if facts.algebra.decay in {"gated", "channel"}:
        assert facts.algebra.log_decay is not None
        builder.extend(node for node in loaded.nodes if node.region == HEAD)
        bound = facts.printer.bound(loaded.bindings)
        lines = bound.statements("b_a", facts.algebra.log_decay)
        line = f"b_l = tl.exp2(b_a * {number(LOG2E)})"
        reads = tuple(node.buffer for node in loaded.nodes)
        shape: tuple[str, ...] = ()
        if facts.algebra.by_channel:
            shape = (str(facts.features.tiles[0].width),)
            if not _reads_channels(facts.algebra):
                lines = (*lines, f"b_a = b_a + tl.zeros([{shape[0]}], ACC)")
        builder.map("b_l", HEAD, shape, *lines, line, reads=reads, note="decay of this token")
    rows = "b_l[:, None]" if facts.algebra.by_channel else "b_l"
    for n, tile in enumerate(facts.features.tiles):
        width = str(tile.width)
        kept = f"b_h{n} * {rows}" if decayed else f"b_h{n}"
        line = f"b_h{n} = {kept} + b_f{n}[:, None] * b_v[None, :]"
        reads = (f"b_h{n}", f"b_f{n}", "b_v", "b_l")
        builder.fold(f"b_h{n}", HEAD, (width, "BV"), line, name=f"fold b_h{n}", reads=reads)
        if facts.summed:
            kept = f"b_z{n} * b_l" if decayed else f"b_z{n}"
            line = f"b_z{n} = {kept} + b_f{n}"
            reads = (f"b_z{n}", f"b_f{n}", "b_l")
            builder.fold(f"b_z{n}", HEAD, (width,), line, name=f"fold b_z{n}", reads=reads)


def _reads_channels(algebra: Algebra) -> bool:
    """Whether the rate still has channels: `0 * g[t, k]` has lost them."""
    assert algebra.log_decay is not None
    symbols = algebra.log_decay.free_symbols
    return any("k" in ref.index and ref_symbol(ref) in symbols for ref in algebra.decay_refs)


def _rows(builder: GraphBuilder, facts: TokenFacts) -> None:
    """o = f(q) @ h, for each query head that reads this state."""
    line = "p_qt = p_q + o_t * stride_q_t + i_q * stride_q_h"
    builder.map("p_qt", STEP, (), line, reads=("o_t",))
    builder.extend(token_features(facts, "q", "b_p", STEP))
    tiles = range(len(facts.features.tiles))
    for n in tiles:
        before = "b_o + " if n else ""
        line = f"b_o = {before}tl.sum(b_p{n}[:, None] * b_h{n}, 0)"
        reads = ("b_o", f"b_p{n}", f"b_h{n}")
        builder.reduce("b_o", STEP, ("BV",), line, name=f"from b_h{n}", reads=reads)
    if facts.summed:
        for n in tiles:
            before = "b_n + " if n else ""
            line = f"b_n = {before}tl.sum(b_p{n} * b_z{n}, 0)"
            reads = ("b_n", f"b_p{n}", f"b_z{n}")
            builder.reduce("b_n", STEP, (), line, name=f"from b_z{n}", reads=reads)
        line = "b_o = b_o / tl.where(b_n != 0.0, b_n, 1.0)"
        builder.map("b_o", STEP, ("BV",), line, name="normalise", reads=("b_o", "b_n"))
        if facts.row_sums:
            # programs of other columns of v write the same sums
            builder.store(
                STEP, (), "b_n", name="store norm", reads=("b_n",), tensor="norm",
                address=f"norm + (i_b * HQ + i_q) * {facts.tokens} + o_t",
            )  # fmt: skip
    elif facts.features.direct:
        factor = float(facts.algebra.coefficients[1]) * facts.variant.scale.value(facts.dims[0])
        if factor != 1.0:
            line = f"b_o = b_o * {number(factor)}"
            note = "the scale of a linear weight, once a row"
            builder.map("b_o", STEP, ("BV",), line, name="scale", reads=("b_o",), note=note)
    builder.store(
        STEP, ("BV",), "b_o.to(o.dtype.element_ty)", name="store o", reads=("b_o",), tensor="o",
        address="o + ((i_b * T + o_t) * HQ + i_q) * V + o_v", guard="m_v",
    )  # fmt: skip


def _store_state(builder: GraphBuilder, facts: TokenFacts) -> None:
    if facts.summed:
        # programs of other columns of v fold the same sums and may not have read them yet: the
        # first one keeps them, elsewhere unless it is alone
        note = "the first columns' program keeps the normaliser's state"
        builder.map("n_f", FINISH, (), "n_f = tl.where(i_v == 0, F, 0)", note=note)
    for n, tile in enumerate(facts.features.tiles):
        width, rows = str(tile.width), facts.guard(n)
        builder.store(
            FINISH, (width, "BV"), f"b_h{n}", name=f"store b_h{n}", tensor="state",
            note="" if n else "the state after the last token", reads=(f"b_h{n}",),
            address=_state_address(n),
            guard=join_guards(rows and f"({rows})[:, None]", "m_v[None, :]"),
        )  # fmt: skip
        if facts.summed:
            builder.store(
                FINISH, (width,), f"b_z{n}", name=f"store b_z{n}", reads=(f"b_z{n}",),
                tensor="final_sums", address=f"p_final_sums + r_f{n} * stride_final_sums_f",
                guard=f"r_f{n} < n_f",
            )  # fmt: skip
