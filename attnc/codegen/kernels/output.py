"""The `output` pass: rows of every segment from its carried state, chunk by chunk."""

from __future__ import annotations

from attnc.codegen.expression.printer import number
from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_pairs import SQUARE, pairs_address, pairs_argument
from attnc.codegen.kernels.chunk import (
    CHUNKS,
    CONSTANTS,
    SCALARS,
    ChunkFacts,
    decay_setup,
    decay_step,
    load_keys,
    load_rows,
    value_setup,
)
from attnc.codegen.kernels.monomials import selection_nodes, tile_nodes
from attnc.codegen.kernels.state_fold import decay_value, fold_tile, load_state
from attnc.codegen.kernels.value import with_tensors
from attnc.codegen.kernels.weight import horner


def output_kernel(facts: ChunkFacts) -> Kernel:
    """One program: BV columns of one segment of one query head."""
    builder = GraphBuilder("output")
    loaded = decay_setup(builder, facts)
    values = value_setup(builder, facts)
    load_state(builder, facts)
    load_rows(builder, facts, "q")
    load_keys(builder, facts, values=values)
    decay_step(builder, facts, loaded)
    if facts.algebra.by_channel:
        _load_pairs(builder)
    else:
        _inside_chunk(builder, facts)
    _weigh_values(builder, facts)
    for n, tile in enumerate(facts.features.tiles):
        # tile by tile: the features of one alone stand in registers, and what picks them
        builder.extend(selection_nodes(facts.features, weights=True, only=n, region=STEP))
        _from_state(builder, facts, n)
        if tile is facts.features.tiles[-1]:
            _finish_rows(builder, facts)
        if n == 0:
            decay_value(builder, facts)
        if not facts.features.direct:
            nodes = tile_nodes(facts.features, n, "b_k", "b_f", rows="BC", weighted=False)
            builder.extend(nodes)
        fold_tile(builder, facts, n)
    tensors = (*facts.key_tensors(), *loaded.tensors)
    if facts.algebra.by_channel:
        tensors = (*tensors, pairs_argument())
    return _kernel(builder, facts, with_tensors(tensors, values), facts.slot_layout)


def global_output_kernel(facts: ChunkFacts) -> Kernel:
    """One program: BV columns of some chunks of queries, against the sum over all keys."""
    builder = GraphBuilder("output")
    builder.extend(selection_nodes(facts.features, weights=True))
    load_state(builder, facts)
    load_rows(builder, facts, "q")
    line = "b_o = tl.zeros([BC, BV], ACC)"
    builder.map("b_o", STEP, ("BC", "BV"), line, note="every key is in the state")
    if facts.summed:
        builder.map("b_n", STEP, ("BC",), "b_n = tl.zeros([BC], ACC)")
    for n in range(len(facts.features.tiles)):
        _from_state(builder, facts, n)
    _finish_rows(builder, facts)
    return _kernel(builder, facts, (), "[B, HS, SLOT]: the sum over all keys")


def _kernel(
    builder: GraphBuilder, facts: ChunkFacts, keys: tuple[TensorArgument, ...], layout: str
) -> Kernel:
    tensors = (
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, T, HQ, K]"),
        *keys,
        *facts.tables(weights=True),
        TensorArgument("states", (), "acc", layout),
        TensorArgument("o", (), "io", "[B, T, HQ, V]", written=True),
    )
    if facts.summed:
        norm = TensorArgument("norm", (), "acc", "[B, HQ, T]: sum of weights", written=True)
        tensors = (*tensors, norm)
    return Kernel("output", "", tensors, SCALARS, CONSTANTS, builder.build(), (), (CHUNKS,))


def _inside_chunk(builder: GraphBuilder, facts: ChunkFacts) -> None:
    """Pairs inside the chunk, by the polynomial of s: no feature is formed."""
    scale = facts.variant.scale.value(facts.dims[0])
    square = ("BC", "BC")
    left = Operand("b_q", "b_q", ("BC", "BK"))
    right = Operand("b_k", "tl.trans(b_k)", ("BK", "BC"), transposed=True)
    note = "inside the chunk: [BC, BK] @ [BK, BC]"
    builder.dot("b_s", STEP, square, left, right, note=note)
    direct = facts.features.direct
    weight = horner("b_w", "b_s", facts.algebra.coefficients, scale, direct=direct)
    note = "" if direct else "the weight as a polynomial of s: no feature is formed"
    builder.map("b_w", STEP, square, *weight, reads=("b_s",), note=note, name="weight")
    if facts.algebra.decay is not None:
        line = "b_w = b_w * tl.exp2(b_g[:, None] - b_g[None, :])"
        builder.map("b_w", STEP, square, line, reads=("b_w", "b_g"), name="decay")
    seen = "b_w = tl.where(r_c[:, None] >= r_c[None, :], b_w, 0.0)"
    builder.map("b_w", STEP, square, seen, reads=("b_w",), name="visible")


def _load_pairs(builder: GraphBuilder) -> None:
    """Pairs inside the chunk, weighed by the pass before."""
    builder.load(
        "b_w", STEP, SQUARE, dtype="io", tensor="pairs", guard="m_t[:, None]",
        address=f"{pairs_address()} + r_c[None, :]", note="inside the chunk: [BC, BC]",
    )  # fmt: skip


def _weigh_values(builder: GraphBuilder, facts: ChunkFacts) -> None:
    square = SQUARE
    if facts.summed:
        builder.reduce("b_n", STEP, ("BC",), "b_n = tl.sum(b_w.to(IO).to(ACC), 1)", reads=("b_w",))
    left = Operand("b_w", "b_w.to(b_v.dtype)", square)
    right = Operand("b_v", "b_v", ("BC", "BV"))
    builder.dot("b_o", STEP, ("BC", "BV"), left, right, note="[BC, BC] @ [BC, BV]")


def _from_state(builder: GraphBuilder, facts: ChunkFacts, n: int) -> None:
    """Add features(q) @ h of one tile of features, decayed from the chunk's start."""
    direct, decayed = facts.features.direct, facts.algebra.decay is not None
    rows = "q" if facts.algebra.global_sum else "v"
    width = str(facts.features.tiles[n].width)
    if not direct:
        builder.extend(tile_nodes(facts.features, n, "b_q", "b_p", rows="BC", weighted=True))
    query = source = "b_q" if direct else f"b_p{n}"
    if decayed:
        query = f"{source}g"
        line = f"{query} = {source} * {facts.from_start}"
        note = "decay from the chunk's start to each row"
        shape = ("BC", "BK" if direct else width)
        builder.map(query, STEP, shape, line, dtype="io", reads=(source, "b_g"), note=note)
    if facts.summed:
        line = f"b_n = b_n + tl.sum({query} * b_z{n}[None, :], 1)"
        reads = ("b_n", query, f"b_z{n}")
        builder.reduce("b_n", STEP, ("BC",), line, name=f"state sum {n}", reads=reads)
    left = Operand(query, query, ("BC", width))
    right = Operand(f"b_h{n}", f"b_h{n}.to(b_{rows}.dtype)", (width, "BV"))
    note = f"from the state: [BC, {width}] @ [{width}, BV]"
    name = f"from b_h{n}"
    builder.dot("b_o", STEP, ("BC", "BV"), left, right, name=name, into="b_o", note=note)


def _finish_rows(builder: GraphBuilder, facts: ChunkFacts) -> None:
    tile = ("BC", "BV")
    coefficient = float(facts.algebra.coefficients[1]) if facts.features.direct else 1.0
    factor = coefficient * facts.variant.scale.value(facts.dims[0])
    if facts.summed:
        line = "b_o = b_o / tl.where(b_n != 0.0, b_n, 1.0)[:, None]"
        builder.map("b_o", STEP, tile, line, name="normalise", reads=("b_o", "b_n"))
        # programs of other columns of v write the same sums
        builder.store(
            STEP, ("BC",), "b_n", name="store norm", reads=("b_n",),
            tensor="norm", address="p_norm + o_t", guard="m_t",
        )  # fmt: skip
    elif facts.features.direct and factor != 1.0:
        note = "the scale of a linear weight, once a row"
        line = f"b_o = b_o * {number(factor)}"
        builder.map("b_o", STEP, tile, line, name="scale", reads=("b_o",), note=note)
    start = "p_ot = p_o + tl.cast(i_c * BC, tl.int64) * HQ * V"
    builder.store(
        STEP, tile, start, "b_o.to(o.dtype.element_ty)",
        name="store o", reads=("b_o",), tensor="o", note="[BC, BV]",
        address="p_ot + r_c[:, None] * HQ * V + o_v[None, :]",
        guard="m_t[:, None] & m_v[None, :]",
    )  # fmt: skip
