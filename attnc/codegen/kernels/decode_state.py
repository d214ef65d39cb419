"""The state of a folded term in a decode step: what enters it, and what the row reads of it.

The term sees i - j >= N. Its key at N behind the new token enters the state first, from the ring
that it has not left yet; then the state holds every key that the row sees of that term, so no pair
of it is formed. Of several splits the first alone has the state, and no other program touches it.
Source: Based (arXiv 2402.18668) for the state; LoLCATs (arXiv 2410.10254) for the sum.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import SETUP, GraphBuilder, Node
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.from_state import read_tile, start_from_state
from attnc.codegen.kernels.operand import join_guards
from attnc.codegen.kernels.terms import Part
from attnc.codegen.kernels.token_features import TokenFacts, feature_tables, token_features


def state_tensors(facts: TokenFacts, distance: int) -> tuple[TensorArgument, ...]:
    """The tables that features are made by, the state and its sums."""
    tables: tuple[TensorArgument, ...] = ()
    if not facts.features.direct:
        tables = (
            TensorArgument("index", (), "i32", "[ORDER, FP]: factors of each feature"),
            TensorArgument("weight", (), "fp32", "[FP]: weight of each feature"),
        )
    layout = f"[B, HKV, F, V]: keys {distance} or more behind the token"
    state = TensorArgument("state", ("b", "h", "f", "v"), "acc", layout, written=True)
    layout = "[B, HKV, F]: the normaliser's"
    sums = TensorArgument("sums", ("b", "h", "f"), "acc", layout, written=True)
    return (*tables, state, sums)


def start_with_state(
    builder: GraphBuilder, algebra: Algebra, facts: TokenFacts, folded: Part, *, split: bool
) -> None:
    """`b_m`, `b_l` and `b_o` as the state gives them, tile by tile, and the state stored again."""
    feature_tables(builder, facts)
    _enter(builder, facts, algebra.distance, split=split)
    line = "b_t = tl.exp2(-tl.ceil(tl.log2(tl.maximum(i_p, 1).to(ACC))))"
    note = "the state is read as a mean over its tokens: fp16 holds that, however many there are"
    builder.map("b_t", SETUP, (), line, note=note)
    for n, tile in enumerate(facts.features.tiles):
        width = str(tile.width)
        _load_tile(builder, facts, n, split=split)
        line = f"b_h{n} = b_h{n} + b_fl{n}[:, None] * b_vl[None, :]"
        reads = (f"b_h{n}", f"b_fl{n}", "b_vl")
        builder.fold(f"b_h{n}", SETUP, (width, "BV"), line, name=f"fold b_h{n}", reads=reads)
        line = f"b_z{n} = b_z{n} + b_fl{n}"
        summed = (f"b_z{n}", f"b_fl{n}")
        builder.fold(f"b_z{n}", SETUP, (width,), line, name=f"fold b_z{n}", reads=summed)
        query = folded.query
        if not facts.features.direct:
            builder.add(_row_features(facts, n))
            query = f"b_p{n}"
        read_tile(builder, query, n, width, f"(b_h{n} * b_t).to(IO)", region=SETUP)
        _store_tile(builder, facts, n, split=split)
    line = "b_o = b_o / b_t"
    builder.map("b_o", SETUP, ("BT", "BV"), line, name="weigh b_o", reads=("b_o", "b_t"))
    start_from_state(builder, algebra, folded, facts.dims[0], region=SETUP)


def _enter(builder: GraphBuilder, facts: TokenFacts, distance: int, *, split: bool) -> None:
    """`b_fl` and `b_vl` of the key that the term's mask shows from this token on, zero without."""
    if distance:
        lines = [
            f"o_l = i_p - {distance}",
            "m_l = (o_l >= 0) & (i_n == 0)" if split else "m_l = o_l >= 0",
            "o_lc = tl.cast(tl.maximum(o_l, 0) % C, tl.int64)",
            "p_kl = p_key_cache + o_lc * stride_key_cache_t",
            "p_vl = p_value_cache + o_lc * stride_value_cache_t",
        ]
        key, value = "key_cache", "value_cache"
    else:
        lines = ["m_l = i_n == 0" if split else "m_l = i_p >= 0", "p_kl = p_k", "p_vl = p_v"]
        key, value = "k", "v"
    note = "the key that enters the state"
    builder.map("p_kl", SETUP, (), *lines, "n_l = tl.where(m_l, V, 0)", note=note)
    nodes = token_features(facts, key, "b_fl", SETUP, "p_kl")
    builder.extend(nodes)
    for n, tile in enumerate(facts.features.tiles):
        line = f"b_fl{n} = tl.where(m_l, b_fl{n}, 0.0)"
        shape, reads = (str(tile.width),), (f"b_fl{n}", "p_kl")
        builder.map(f"b_fl{n}", SETUP, shape, line, name=f"entering {n}", reads=reads)
    builder.load(
        "b_vl", SETUP, ("BV",), tensor=value, reads=("p_kl",), guard="o_v < n_l",
        address=f"p_vl + o_v * stride_{value}_v",
    )  # fmt: skip
    if split:
        builder.map("n_f", SETUP, (), "n_f = tl.where(i_n == 0, F, 0)", note="the first split's")


def _guard(facts: TokenFacts, n: int, *, split: bool) -> str:
    """The guard of a tile's rows that are no features, or not this split's."""
    return f"r_f{n} < n_f" if split else facts.guard(n)


def _address(n: int) -> str:
    return f"p_state + r_f{n}[:, None] * stride_state_f + o_v[None, :] * stride_state_v"


def _load_tile(builder: GraphBuilder, facts: TokenFacts, n: int, *, split: bool) -> None:
    width, rows = str(facts.features.tiles[n].width), _guard(facts, n, split=split)
    reads = (f"r_f{n}", "n_f")
    builder.load(
        f"b_h{n}", SETUP, (width, "BV"), tensor="state", reads=reads, address=_address(n),
        guard=join_guards(rows and f"({rows})[:, None]", "m_v[None, :]"),
    )  # fmt: skip
    builder.load(
        f"b_z{n}", SETUP, (width,), tensor="sums", reads=reads, guard=rows,
        address=f"p_sums + r_f{n} * stride_sums_f",
    )  # fmt: skip


def _row_features(facts: TokenFacts, n: int) -> Node:
    """`b_p` = one tile of monomials of the rows of q, weighted; rows past the group's are any."""
    tile, buffer = facts.features.tiles[n], f"b_p{n}"
    lines, factors = [], []
    for r in range(tile.order):
        factors.append(f"b_x{r}")
        lines += [
            f"p_x = p_q + i_h[:, None] * stride_q_h + b_i{n}{r}[None, :] * stride_q_k",
            f"m_x = m_t[:, None] & (b_i{n}{r} >= 0)[None, :]",
            f"b_x{r} = tl.load(p_x, mask=m_x, other=1.0).to(ACC)",
        ]
    factors.append(f"b_w{n}[None, :]" if tile.order else f"(b_w{n} + tl.zeros([BT, 1], ACC))")
    lines.append(f"{buffer} = ({' * '.join(factors)}).to(IO)")
    reads = (*(f"b_i{n}{r}" for r in range(tile.order)), f"b_w{n}")
    last = tile.start + tile.count - 1
    return Node(
        f"features {buffer}", "load", buffer, SETUP, ("BT", str(tile.width)), "io", reads=reads,
        tensor="q", lines=tuple(lines), note=f"features {tile.start} to {last} of the rows",
    )  # fmt: skip


def _store_tile(builder: GraphBuilder, facts: TokenFacts, n: int, *, split: bool) -> None:
    width, rows = str(facts.features.tiles[n].width), _guard(facts, n, split=split)
    builder.store(
        SETUP, (width, "BV"), f"b_h{n}", name=f"store b_h{n}", tensor="state", reads=(f"b_h{n}",),
        address=_address(n), guard=join_guards(rows and f"({rows})[:, None]", "m_v[None, :]"),
    )  # fmt: skip
    builder.store(
        SETUP, (width,), f"b_z{n}", name=f"store b_z{n}", reads=(f"b_z{n}",), tensor="sums",
        address=f"p_sums + r_f{n} * stride_sums_f", guard=rows,
    )  # fmt: skip
