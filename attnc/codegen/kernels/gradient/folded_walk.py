"""The walks of a sum's backward: what the state of its folded term gives dq, dk and dv.

`walk_dq` goes forward: the rows of a chunk meet the state as in the forward, then the keys that lie
LAG chunks back enter it. The others go back: keys meet what the rows after them lead to, then the
rows that lie LAG chunks ahead enter that. `dstate` folds those of a segment from zero. All of it is
without the term's factor, in the accumulators' type: the passes over pairs go on from there.

    queries   dphi(q_i) = (h do_i - z delta_i) / n_i        h, z: the state that the rows read
    keys      dphi(k_j) = dh v_j + dz                       dh = sum of phi(q_i)^T (do_i / n_i)
    values    dv_j      = phi(k_j) dh                       dz = -sum of phi(q_i) delta_i / n_i
"""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.expression.printer import number
from attnc.codegen.graph import STEP, GraphBuilder
from attnc.codegen.index import Loaded
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.chunk import (
    CHUNKS,
    CONSTANTS,
    SCALARS,
    ChunkFacts,
    Fold,
    load_keys,
    load_rows,
    value_setup,
)
from attnc.codegen.kernels.decay import LOG2E
from attnc.codegen.kernels.gradient.border import row_sums, state_part, sums_weights
from attnc.codegen.kernels.gradient.carry import BACK, slots
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.part_pairs import LEAST
from attnc.codegen.kernels.gradient.state_terms import key_terms, query_terms, value_term
from attnc.codegen.kernels.lagging import LAGGING, lagging_values, load_lagging
from attnc.codegen.kernels.monomials import selection_nodes, tile_nodes
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features
from attnc.codegen.kernels.state import store_state
from attnc.codegen.kernels.state_fold import fold_tile, load_state, start_state
from attnc.codegen.kernels.terms import inverse
from attnc.codegen.kernels.value import with_tensors
from attnc.codegen.tile_range import KeyLoop

# the rows that enter what keys before them meet, weighed as their normaliser says
_ROWS = Fold("b_q", "b_p", "b_do", "", "", weight="b_d", there="m_t")
_LEADING = Fold("b_q", "b_p", "b_do", "", "", weight="b_d", there="m_l")


def folded_dstate_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """One program: BV columns of one segment of one query head."""
    builder = GraphBuilder("dstate")
    builder.extend(selection_nodes(chunk.features, weights=True))
    start_state(builder, chunk)
    load_rows(builder, chunk, "q")
    _load_outputs(builder, chunk, "i_c * BC", "o_t", "m_t")
    _weigh_outputs(builder, chunk)
    for n in range(len(chunk.features.tiles)):
        _weighed_features(builder, chunk, n)
        fold_tile(builder, chunk, n, _ROWS)
    store_state(builder, chunk)
    return _kernel(builder, chunk, _row_tensors(facts), Loaded((), {}, ()), [], BACK, written=True)


def folded_dq_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dq of one segment of one query head, and what its rows' pairs in the state add up to."""
    builder = GraphBuilder("walk_dq")
    values = lagging_values(builder, chunk, STEP)
    load_state(builder, chunk)
    load_rows(builder, chunk, "q")
    _load_outputs(builder, chunk, "i_c * BC", "o_t", "m_t")
    line = "b_d = -b_d"
    builder.map("b_d", STEP, ("BC",), line, name="negate delta", reads=("b_d",))
    load_lagging(builder, chunk, values, STEP)
    sums = row_sums(facts, "T")
    _start(builder, "b_dq", ("BC", "BK"))
    if sums:
        _start(builder, "b_r", ("BC",), "what each row's score gradients add up to")
    if sums_weights(facts):
        _start(builder, "b_ws", ("BC",), "and its weights")
    for n in range(len(chunk.features.tiles)):
        builder.extend(selection_nodes(chunk.features, weights=True, only=n, region=STEP))
        query_terms(builder, chunk, facts, n, "b_do", late="b_n", rows=bool(sums))
        if sums_weights(facts):
            query = "b_q" if chunk.features.direct else f"b_p{n}"
            line = f"b_ws = b_ws + tl.sum({query} * b_z{n}[None, :], 1)"
            reads = ("b_ws", query, f"b_z{n}")
            builder.map("b_ws", STEP, ("BC",), line, name=f"weights {n}", reads=reads)
        if not chunk.features.direct:
            builder.extend(tile_nodes(chunk.features, n, "b_kl", "b_fl", rows="BC", weighted=False))
        fold_tile(builder, chunk, n, LAGGING)
    _store(builder, chunk, "dq")
    stored = {"folded_scores": "b_r", "folded_weights": "b_ws * b_n"}
    for argument in sums:
        value = stored[argument.name]
        builder.store(
            STEP, ("BC",), value, name=f"store {argument.name}", reads=("b_r", "b_ws", "b_n"),
            tensor=argument.name, address=f"p_{argument.name} + o_t", guard="m_t",
        )  # fmt: skip
    tensors = [*_row_tensors(facts), *chunk.key_tensors()]
    return _kernel(builder, chunk, tensors, values, [state_part("dq", "T"), *sums], CHUNKS)


def folded_dkv_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk and dv of one segment of one query head."""
    return _back(chunk, facts, "walk_dkv", keys=True, values=True)


def folded_dk_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """dk of one segment of one query head."""
    return _back(chunk, facts, "walk_dk", keys=True, values=False)


def folded_dv_kernel(chunk: ChunkFacts, facts: GradientFacts) -> Kernel:
    """BV columns of dv of one segment of one query head."""
    return _back(chunk, facts, "walk_dv", keys=False, values=True)


def _back(
    chunk: ChunkFacts, facts: GradientFacts, name: str, *, keys: bool, values: bool
) -> Kernel:
    builder = GraphBuilder(name)
    handed = value_setup(builder, chunk) if keys else Loaded((), {}, ())
    load_state(builder, chunk, note="what the rows after this segment lead to", sums=keys)
    # a linear weight's dk reads no key
    rows = values or not chunk.features.direct
    if rows:
        load_rows(builder, chunk, "k")
    if keys:
        load_keys(builder, chunk, keys=False, values=handed)
    _load_leading(builder, chunk)
    _weigh_outputs(builder, chunk)
    if keys:
        _start(builder, "b_dk", ("BC", "BK"))
    if values:
        _start(builder, "b_dv", ("BC", "BV"))
    for n in range(len(chunk.features.tiles)):
        builder.extend(selection_nodes(chunk.features, weights=True, only=n, region=STEP))
        if keys:
            key_terms(builder, chunk, facts, n, "b_v", feature=values)
        if values:
            value_term(builder, chunk, n, "b_dv", "b_k", made=keys)
        _weighed_features(builder, chunk, n)
        fold_tile(builder, chunk, n, _LEADING, sums=keys)
    written = [name for name, wanted in (("dk", keys), ("dv", values)) if wanted]
    for gradient in written:
        _store(builder, chunk, gradient)
    k, v = chunk.key_tensors()
    tensors = [*_row_tensors(facts), *([k] if rows else []), *([v] if keys else [])]
    parts = [state_part(gradient, "T") for gradient in written]
    return _kernel(builder, chunk, tensors, handed, parts, BACK)


def _load_leading(builder: GraphBuilder, chunk: ChunkFacts) -> None:
    """The rows that lie LAG chunks ahead: the last that do not see this chunk by the state."""
    lines = ("o_l = (i_c + LAG) * BC + r_c", "m_l = o_l < T")
    note = "the rows that enter once these keys have met those after them"
    builder.map("o_l", STEP, ("BC",), *lines, dtype="i32", note=note)
    start, shape = "(i_c + LAG) * BC", ("BC", "BK")
    guard = join_guards("m_l[:, None]", chunk.k_mask)
    strides = ("stride_q_t", "stride_q_k")
    builder.add(
        load_tile("b_q", "p_q", strides, ("r_c", "o_k"), shape, STEP, guard=guard, start=start)
    )
    phi = chunk.algebra.phi
    builder.extend(map_features("b_q", phi, shape, STEP, chunk.printer, guard=guard))
    _load_outputs(builder, chunk, start, "o_l", "m_l")


def _load_outputs(
    builder: GraphBuilder, chunk: ChunkFacts, start: str, rows: str, there: str
) -> None:
    """A chunk of do, delta, and `b_n`: by what a row's weights are multiplied, 0 in padding."""
    guard = join_guards(f"{there}[:, None]", chunk.v_mask)
    strides = ("stride_do_t", "stride_do_v")
    shape = ("BC", "BV")
    builder.add(
        load_tile("b_do", "p_do", strides, ("r_c", "o_v"), shape, STEP, guard=guard, start=start)
    )
    builder.load("b_m", STEP, ("BC",), tensor="lse", address=f"p_lse + {rows}", guard=there)
    seen = f'b_m = tl.where({there} & (b_m > float("-inf")), b_m * {number(LOG2E)}, float("inf"))'
    factor = 1.0
    if chunk.features.direct:
        factor = float(chunk.algebra.coefficients[1]) * chunk.variant.scale.value(chunk.dims[0])
    times = "" if factor == 1.0 else f" * {number(factor)}"
    lines = (seen, f"b_n = {inverse('b_m', LEAST)}{times}")
    note = "the normaliser's inverse" + (", and a linear weight's factor" if times else "")
    builder.map("b_n", STEP, ("BC",), *lines, reads=("b_m",), note=note)
    builder.load("b_d", STEP, ("BC",), tensor="delta", address=f"p_delta + {rows}", guard=there)


def _weigh_outputs(builder: GraphBuilder, chunk: ChunkFacts) -> None:
    """do and delta over the normaliser: what a row adds to what its keys meet.

    An inverse over 1 multiplies the features instead, which are small where it is large: as no
    weight over its normaliser passes 1, neither overflows, nor are both lost in fp16.
    """
    lines = ("b_nf = tl.maximum(b_n, 1.0)", "b_n = tl.minimum(b_n, 1.0)")
    note = "what is over 1 goes to the features, the rest to do"
    builder.map("b_n", STEP, ("BC",), *lines, name="share b_n", reads=("b_n",), note=note)
    line = "b_do = b_do * b_n[:, None]"
    reads = ("b_do", "b_n")
    builder.map("b_do", STEP, ("BC", "BV"), line, name="weigh do", dtype="io", reads=reads)
    line = "b_d = -b_d * b_n"
    builder.map("b_d", STEP, ("BC",), line, name="weigh delta", reads=("b_d", "b_n"))
    if chunk.features.direct:
        _weigh_features(builder, "b_q", "BK")


def _weigh_features(builder: GraphBuilder, features: str, width: str) -> None:
    line = f"{features} = {features} * b_nf[:, None]"
    builder.map(
        features, STEP, ("BC", width), line, name=f"weigh {features}", dtype="io",
        reads=(features, "b_n"),
    )  # fmt: skip


def _weighed_features(builder: GraphBuilder, chunk: ChunkFacts, n: int) -> None:
    """Tile n of the monomials of q, over the normaliser where that is small."""
    if not chunk.features.direct:
        builder.extend(tile_nodes(chunk.features, n, "b_q", "b_p", rows="BC", weighted=True))
        _weigh_features(builder, f"b_p{n}", chunk.state_rows(n))


def _start(builder: GraphBuilder, name: str, shape: tuple[str, ...], note: str = "") -> None:
    line = f"{name} = tl.zeros([{', '.join(shape)}], ACC)"
    builder.map(name, STEP, shape, line, name=f"start {name}", note=note)


def _store(builder: GraphBuilder, chunk: ChunkFacts, name: str) -> None:
    dim, mask = ("V", chunk.v_mask) if name == "dv" else ("K", chunk.k_mask)
    start = f"p_{name}t = p_folded_{name} + tl.cast(i_c * BC, tl.int64) * HQ * {dim}"
    builder.store(
        STEP, ("BC", f"B{dim}"), start, f"b_{name}", name=f"store {name}",
        reads=(f"b_{name}",), tensor=f"folded_{name}", note=f"[BC, B{dim}]",
        address=f"p_{name}t + r_c[:, None] * HQ * {dim} + o_{dim.lower()}[None, :]",
        guard=join_guards("m_t[:, None]", mask),
    )  # fmt: skip


def _row_tensors(facts: GradientFacts) -> list[TensorArgument]:
    known = facts.tensors(tokens="T")
    return [known[name] for name in ("q", "do", "lse", "delta")]


def _kernel(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    tensors: Iterable[TensorArgument],
    values: Loaded,
    parts: list[TensorArgument],
    loop: KeyLoop,
    *,
    written: bool = False,
) -> Kernel:
    """`written` says that the states are what the pass leaves, beside `parts`."""
    layout = slots("HQ" if loop is BACK else "HS", "NS", chunk)
    states = TensorArgument("states", (), "acc", layout, written=written)
    read = (*tensors, *chunk.tables(weights=True), states)
    stored = [
        TensorArgument(part.name, (), part.dtype, part.layout, written=True) for part in parts
    ]
    return Kernel(
        builder.kernel, "", (*with_tensors(read, values), *stored), SCALARS, (*CONSTANTS, "LAG"),
        builder.build(), (), (loop,),
    )  # fmt: skip
