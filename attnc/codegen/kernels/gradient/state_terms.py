"""What the states on both sides of a chunk give its gradients.

    queries   dphi(q_i) = exp(g_i) (h do'_i + z dn_i)          h, z: the state before the chunk
    keys      dphi(k_j) = exp(g_end - g_j) (dh v_j + dz)       dh, dz: the gradient of that after it
    values    dv_j     += exp(g_end - g_j) phi(k_j) dh

With monomial features phi is a product of channels, and each factor gets the product of the others.
"""

from __future__ import annotations

from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.feature_gradient import through_features
from attnc.codegen.kernels.monomials import column_text, tile_nodes
from attnc.codegen.kernels.operand import join_guards


def from_state_before(builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts) -> None:
    """Add to dq, and to a decay's `b_r`, what the state before the chunk gives."""
    outputs = decayed_outputs(builder, chunk, facts)
    for n in range(len(chunk.features.tiles)):
        _load_tile(builder, chunk, n, "b_h", "carried", "the state before the chunk")
        query_terms(builder, chunk, facts, n, outputs)


def decayed_outputs(builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts) -> str:
    """The buffer of do as the state before the chunk meets it: decayed from the chunk's start."""
    if chunk.algebra.decay is None:
        return "b_do"
    note = "decay from the chunk's start to each row"
    builder.map("b_rl", STEP, ("BC",), "b_rl = tl.exp2(b_g)", reads=("b_g",), note=note)
    if facts.derivation.decay:
        return "b_do"
    line = "b_dog = b_do * b_rl[:, None]"
    builder.map("b_dog", STEP, ("BC", "BV"), line, dtype="io", reads=("b_do", "b_rl"))
    return "b_dog"


def dkey_from_state(builder: GraphBuilder, chunk: ChunkFacts, facts: GradientFacts) -> None:
    """Add to dk, and to a decay's `b_cj` and `b_dd`, what the state after the chunk leads to."""
    values = "b_v"
    decay = bool(facts.derivation.decay)
    if not decay:
        values = decayed_values(builder, chunk)
    else:
        note = "decay from each key to the chunk's end"
        line = "b_u = tl.exp2(b_gl - b_g)"
        builder.map("b_u", STEP, ("BC",), line, reads=("b_g", "b_gl"), note=note)
        builder.map("b_cj", STEP, ("BC",), "b_cj = tl.zeros([BC], ACC)")
        builder.map("b_dd", STEP, (), "b_dd = tl.zeros([], ACC)")
    for n in range(len(chunk.features.tiles)):
        _load_tile(builder, chunk, n, "b_j", "dcarried", "what the state after the chunk leads to")
        key_terms(builder, chunk, facts, n, values)
        if decay:
            _load_tile(builder, chunk, n, "b_h", "carried", "the state before the chunk")
            _boundary(builder, chunk, n)
    if decay:
        line = "b_dd = b_dd * tl.exp2(b_gl)"
        note = "pairs from before the chunk to after it"
        builder.map("b_dd", STEP, (), line, name="across", reads=("b_dd", "b_gl"), note=note)


def decayed_values(builder: GraphBuilder, chunk: ChunkFacts) -> str:
    """The buffer of v as the state after the chunk meets it: decayed to the chunk's end."""
    if chunk.algebra.decay is None:
        return "b_v"
    _to_end(builder, "b_v", "b_vu", "BV")
    return "b_vu"


def dvalue_from_state(builder: GraphBuilder, chunk: ChunkFacts, total: str) -> None:
    """Add to `total` what the state after the chunk leads to."""
    keys = decayed_keys(builder, chunk)
    for n in range(len(chunk.features.tiles)):
        _load_tile(builder, chunk, n, "b_j", "dcarried", "what the state after the chunk leads to")
        value_term(builder, chunk, n, total, keys)


def decayed_keys(builder: GraphBuilder, chunk: ChunkFacts, *, known: bool = False) -> str:
    """The buffer of k as the state after the chunk meets it; monomials are decayed by tiles.

    `known` says that the decays to the chunk's end are there.
    """
    if chunk.algebra.decay is None or not chunk.features.direct:
        return "b_k"
    _to_end(builder, "b_k", "b_ku", "BK", known=known)
    return "b_ku"


def value_term(
    builder: GraphBuilder, chunk: ChunkFacts, n: int, total: str, key: str, *, made: bool = False
) -> None:
    """Add to `total` what tile n of that state gives; `made` says that its features are there."""
    features, width = chunk.features, chunk.state_rows(n)
    state = f"{_after(chunk)[0]}{n}"
    if not features.direct:
        key = f"b_f{n}"
        if not made:
            builder.extend(tile_nodes(features, n, "b_k", "b_f", rows="BC", weighted=False))
        if chunk.algebra.decay is not None:
            _to_end(builder, key, f"{key}u", width, known=made)
            key = f"{key}u"
    builder.dot(
        total, STEP, ("BC", "BV"), Operand(key, key, ("BC", width)),
        Operand(state, chunk.carried_text(state), (width, "BV")), name=f"state dv{n}",
        into=total, carried=_over_heads(builder), note=f"[BC, {width}] @ [{width}, BV]",
    )  # fmt: skip


def _after(chunk: ChunkFacts) -> tuple[str, str]:
    """The buffers of the state after the chunk and of its sums: a walk holds no other state."""
    return ("b_h", "b_z") if chunk.walks else ("b_j", "b_dz")


def _over_heads(builder: GraphBuilder) -> bool:
    """Whether dk and dv are carried over the heads of a group."""
    return builder.kernel in {"dkey", "dvalue"}


def _to_end(
    builder: GraphBuilder, source: str, target: str, columns: str, *, known: bool = False
) -> None:
    """`target` = rows of `source` decayed from each key to the chunk's end."""
    lines = ["b_u = tl.exp2(b_gl - b_g)", f"{target} = {source} * b_u[:, None]"]
    note = "decay from each key to the chunk's end"
    reads = (source, "b_g", "b_gl")
    if not known:
        name = f"to the end, {target}"
        builder.map("b_u", STEP, ("BC",), lines[0], name=name, reads=reads, note=note)
    builder.map(target, STEP, ("BC", columns), lines[1], dtype="io", reads=(source, "b_u"))


def _load_tile(
    builder: GraphBuilder, chunk: ChunkFacts, n: int, buffer: str, tensor: str, note: str
) -> None:
    """One tile of a state, and of its sums: h and z before the chunk, their gradients after it."""
    tile, after = chunk.features.tiles[n], tensor == "dcarried"
    head = "(i_b * HQ + i_h)" if after else "(i_b * HS + i_hs)"
    place = f"({head} * NC + i_c) * FP"
    start, sums_at = f"{place} * V", f"{place} + r_f{n}"
    if chunk.algebra.global_sum:
        start = f"{head}{' * N' if chunk.algebra.mask.packed else ''} * {chunk.slot}"
        sums_at = f"{start} + FP * V + r_f{n}"
    lines = (
        [f"r_f{n} = {column_text(tile.start, tile.width)}"] if after or not _both(builder) else []
    )
    lines.append(f"p_{tensor} = {tensor} + {start}")
    builder.load(
        f"{buffer}{n}", STEP, (str(tile.width), "BV"), dtype=chunk.carried, tensor=tensor,
        note=note, guard=join_guards("", chunk.v_mask), lines=tuple(lines), reads=("p_q",),
        address=f"p_{tensor} + r_f{n}[:, None] * V + o_v[None, :]",
    )  # fmt: skip
    if chunk.summed and builder.kernel != "dvalue":
        sums, target = ("dsums", f"b_dz{n}") if after else ("sums", f"b_z{n}")
        sums = tensor if chunk.algebra.global_sum else sums
        builder.load(
            target, STEP, (str(tile.width),), tensor=sums, reads=("p_q",),
            address=f"{sums} + {sums_at}",
        )  # fmt: skip


def _both(builder: GraphBuilder) -> bool:
    """Whether the pass reads the states on both sides, and has numbered their rows already."""
    return builder.kernel == "dkey"


def query_terms(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    facts: GradientFacts,
    n: int,
    outputs: str,
    *,
    late: str = "",
    rows: bool = False,
) -> None:
    """dq from the state before the chunk.

    `late` multiplies the rows after the product, and with `rows` their sums are added to `b_r`: as
    a decay's gradient wants both, whose rows are decayed after the product, unrounded.
    """
    features, width = chunk.features, chunk.state_rows(n)
    decayed = chunk.algebra.decay is not None
    if facts.derivation.decay:
        late, rows = "b_rl", True
    if not features.direct:
        builder.extend(tile_nodes(features, n, "b_q", "b_p", rows="BC", weighted=True))
    left = Operand(outputs, outputs, ("BC", "BV"))
    right = Operand(
        f"b_h{n}", f"tl.trans({chunk.carried_text(f'b_h{n}')})", ("BV", width), transposed=True
    )
    note = f"[BC, BV] @ [BV, {width}]"
    sums = ""
    if chunk.summed:
        row = "(b_d * b_rl)[:, None]" if decayed and not late else "b_d[:, None]"
        sums = f" + {row} * b_z{n}[None, :]"
    if features.direct and not late:
        shape = ("BC", "BK")
        builder.dot("b_dq", STEP, shape, left, right, name="state dq", into="b_dq", note=note)
        if sums:
            line = f"b_dq = b_dq{sums}"
            reads = ("b_dq", "b_d", f"b_z{n}", "b_rl")
            builder.map("b_dq", STEP, shape, line, name="sums dq", reads=reads)
        return
    builder.dot("b_df", STEP, ("BC", width), left, right, name=f"state dq{n}", note=note)
    if sums:
        reads = ("b_df", "b_d", f"b_z{n}", "b_rl")
        line = f"b_df = b_df{sums}"
        builder.map("b_df", STEP, ("BC", width), line, name=f"sums dq{n}", reads=reads)
    if late:
        line = f"b_df = b_df * {late}[:, None]"
        name = f"{'decay' if decayed else 'weigh'} dq{n}"
        builder.map("b_df", STEP, ("BC", width), line, name=name, reads=("b_df", late))
    source = "b_q" if features.direct else f"b_p{n}"
    if rows:
        line = f"b_r = b_r + tl.sum({source} * b_df, 1)"
        builder.map("b_r", STEP, ("BC",), line, name=f"rows {n}", reads=("b_r", source, "b_df"))
    through_features(builder, chunk, n, "b_dq", weighted=True)


def key_terms(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    facts: GradientFacts,
    n: int,
    values: str,
    *,
    feature: bool = False,
) -> None:
    """dk from the gradient of the state after the chunk; `feature` keeps a monomial for dv."""
    features, width = chunk.features, chunk.state_rows(n)
    decayed = chunk.algebra.decay is not None
    source = "b_k" if features.direct else f"b_f{n}"
    if not features.direct:
        nodes = tile_nodes(features, n, "b_k", "b_f", rows="BC", weighted=False)
        # the factors are what the derivative needs; the feature itself a decay's gradient alone
        builder.extend(nodes if facts.derivation.decay or feature else nodes[:-1])
    state, gathered = (f"{name}{n}" for name in _after(chunk))
    left = Operand(values, values, ("BC", "BV"))
    right = Operand(state, f"tl.trans({chunk.carried_text(state)})", ("BV", width), transposed=True)
    note = f"[BC, BV] @ [BV, {width}]"
    sums = ""
    if chunk.summed:
        early = decayed and not facts.derivation.decay
        sums = f" + b_u[:, None] * {gathered}[None, :]" if early else f" + {gathered}[None, :]"
    if features.direct and not facts.derivation.decay:
        builder.dot(
            "b_dk", STEP, ("BC", "BK"), left, right, name="state dk", into="b_dk",
            carried=_over_heads(builder), note=note,
        )  # fmt: skip
        if sums:
            line = f"b_dk = b_dk{sums}"
            reads = ("b_dk", gathered, "b_u")
            add = builder.fold if _over_heads(builder) else builder.map
            add("b_dk", STEP, ("BC", "BK"), line, name="sums dk", reads=reads)
        return
    builder.dot("b_df", STEP, ("BC", width), left, right, name=f"state dk{n}", note=note)
    if sums:
        reads = ("b_df", gathered, "b_u")
        line = f"b_df = b_df{sums}"
        builder.map("b_df", STEP, ("BC", width), line, name=f"sums dk{n}", reads=reads)
    if facts.derivation.decay:
        line = "b_df = b_df * b_u[:, None]"
        name = f"decay dk{n}"
        builder.map("b_df", STEP, ("BC", width), line, name=name, reads=("b_df", "b_u"))
        line = f"b_cj = b_cj + tl.sum({source} * b_df, 1)"
        builder.map("b_cj", STEP, ("BC",), line, name=f"keys {n}", reads=("b_cj", source, "b_df"))
    through_features(builder, chunk, n, "b_dk", weighted=False, carried=_over_heads(builder))


def _boundary(builder: GraphBuilder, chunk: ChunkFacts, n: int) -> None:
    lines = [f"b_dd = b_dd + tl.sum(b_h{n}.to(ACC) * b_j{n}.to(ACC))"]
    reads = ["b_dd", f"b_h{n}", f"b_j{n}"]
    if chunk.summed:
        lines.append(f"b_dd = b_dd + tl.sum(b_z{n} * b_dz{n}, 0)")
        reads += [f"b_z{n}", f"b_dz{n}"]
    builder.map("b_dd", STEP, (), *lines, name=f"boundary {n}", reads=tuple(reads))
