"""What the passes of the chunked form share: loads of a chunk, decays, and the fold of the state.

A segment is a run of chunks of BC tokens. `state` folds each segment from zero, `scan` carries the
states from segment to segment, `output` starts from the carried state and folds on. With one
segment a head, `output` alone does the work.
Source: Lightning Attention-2 (arXiv 2401.04658), algorithm 1, over segments; with monomial features
it is Based's state (arXiv 2402.18668), packed symmetrically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.features import Features
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.channel_gates import gates_argument, load_chunk_gates
from attnc.codegen.kernels.decay import LOG2E, constant_decay, index_bindings
from attnc.codegen.kernels.monomials import column_text
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features, ragged_columns
from attnc.codegen.kernels.value import CHUNKED, load_value, map_value, setup_nodes
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.variant import Variant

CHUNKS = KeyLoop("first", "last", True, "the chunks of this segment, in order")
SCALARS = ("T", "HQ", "HKV", "HS", "NS", "CPS")
CONSTANTS = ("K", "V", "BC", "BK", "BV", "FP")
TOKEN_AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", ""),
    "hkv": Axis("i_hkv", ""),
    "t": Axis("o_t", "row", guard="m_t", tile="BC", region=STEP),
}


@dataclass(frozen=True, slots=True)
class Fold:
    """What enters a state: features of `rows`, times `value`, decayed to where the state stands.

    Keys fold forward to the chunk's end; in the backward, queries fold back to its start, and
    `weight` is what a row adds to the normaliser's sums. `ends` holds the decays of the rows, and
    `there` says which are rows.
    """

    rows: str
    features: str
    value: str
    decay: str
    note: str
    ends: str = "b_u"
    weight: str = ""
    there: str = "m_t"


KEYS = Fold(
    "b_k", "b_f", "b_v", "tl.exp2(b_gl - b_g)",
    "decay from each token to the chunk's end, and over the whole chunk",
)  # fmt: skip
QUERIES = Fold(
    "b_q", "b_p", "b_do", "tl.exp2(b_g)",
    "decay from the chunk's start to each row, and over the whole chunk",
    ends="b_rl", weight="b_d",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    """What the three passes are built from: the variant, its algebra and the features' tiles.

    `min_channels` and `min_columns` are the narrowest tiles of K's and of V's channels. With
    `exact_folds` a decayed value enters a state as two parts: a decay near 1 is lost in bf16's
    rounding, the same way token after token, and a gradient of the decay would sum that up; for
    the same reason the states at chunks are kept unrounded. Where a program `walks`, the state
    stays in its registers, and where features are channels it holds BK of its rows. Where it is
    `lagging`, keys enter the state LAG chunks after the one they stand in.
    """

    variant: Variant
    algebra: Algebra
    features: Features
    dims: tuple[int, int]
    printer: Printer
    stateful: bool
    min_columns: int
    min_channels: int = 16
    exact_folds: bool = False
    walks: bool = False
    lagging: bool = False

    @property
    def carried(self) -> str:
        """The type of the states that a backward keeps at chunks."""
        wide = self.exact_folds or self.algebra.global_sum or self.walks
        return "acc" if wide else "io"

    def carried_text(self, buffer: str) -> str:
        """Such a state as the operand of a product."""
        return f"{buffer}.to(IO)" if self.carried == "acc" else buffer

    @property
    def summed(self) -> bool:
        """Whether a normaliser goes with the state."""
        return self.algebra.normalize == "sum"

    @property
    def k_mask(self) -> str:
        """The guard of K's padded columns."""
        return ragged_columns("m_k", self.dims[0], self.min_channels)

    @property
    def v_mask(self) -> str:
        """The guard of V's padded columns."""
        return ragged_columns("m_v", self.dims[1], self.min_columns)

    @property
    def from_start(self) -> str:
        """The decay of each row from the chunk's start, spread over its channels."""
        return "tl.exp2(b_g.to(ACC))" if self.algebra.by_channel else "tl.exp2(b_g)[:, None]"

    @property
    def tokens(self) -> str:
        """How many tokens of a head lie apart in a workspace: those of all packed sequences."""
        return "NK" if self.algebra.mask.packed else "T"

    @property
    def slot_layout(self) -> str:
        """The comment beside the workspace of states."""
        return "[B, HS, NS, SLOT]: FP * V, then FP sums" if self.summed else "[B, HS, NS, FP, V]"

    @property
    def slot(self) -> str:
        """Elements of one state in a workspace, as a factor of an address."""
        return "(FP * V + FP)" if self.summed else "FP * V"

    def state_rows(self, n: int) -> str:
        """How many rows of tile n of the state a program holds, as a letter or a number."""
        shared = self.walks and self.features.direct
        return "BK" if shared else str(self.features.tiles[n].width)

    def row_numbers(self, n: int) -> str:
        """Which rows of the state these are."""
        if self.walks and self.features.direct:
            return "o_k"
        tile = self.features.tiles[n]
        return column_text(tile.start, tile.width)

    def features_of(self, fold: Fold, n: int) -> str:
        """The buffer that holds tile n of the features that a fold reads."""
        return fold.rows if self.features.direct else f"{fold.features}{n}"

    def tables(self, *, weights: bool) -> tuple[TensorArgument, ...]:
        """The constant tables that monomial features read."""
        if self.features.direct:
            return ()
        index = TensorArgument("index", (), "i32", "[ORDER, FP]: factors of each feature")
        if not weights:
            return (index,)
        return (index, TensorArgument("weight", (), "fp32", "[FP]: weight of each feature"))

    def key_tensors(self) -> tuple[TensorArgument, ...]:
        """k and v as arguments."""
        return (
            TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, T, HKV, K]"),
            TensorArgument("v", ("b", "t", "h", "v"), "io", "[B, T, HKV, V]"),
        )


def load_rows(builder: GraphBuilder, facts: ChunkFacts, tensor: str, region: str = STEP) -> None:
    """A chunk of q or k, mapped by phi; padding is zero."""
    buffer = f"b_{tensor}"
    guard = join_guards("m_t[:, None]", facts.k_mask)
    strides = (f"stride_{tensor}_t", f"stride_{tensor}_k")
    builder.add(
        load_tile(
            buffer, f"p_{tensor}", strides, ("r_c", "o_k"), ("BC", "BK"), region,
            guard=guard, start="i_c * BC",
        )
    )  # fmt: skip
    phi = facts.algebra.phi
    builder.extend(map_features(buffer, phi, ("BC", "BK"), region, facts.printer, guard=guard))


def load_keys(
    builder: GraphBuilder,
    facts: ChunkFacts,
    region: str = STEP,
    *,
    keys: bool = True,
    values: Loaded | None = None,
) -> None:
    """A chunk of k, unless `keys` is false, and of v, by way of the declared value's `values`.

    A value whose head is not known yet is made later, of the raw tile `b_vx`.
    """
    if keys:
        load_rows(builder, facts, "k", region)
    guard = join_guards("m_t[:, None]", facts.v_mask)
    raw = "b_vx" if values is None and facts.algebra.value is not None else "b_v"
    stride = ("stride_v_t", "stride_v_v")
    builder.add(
        load_tile(
            raw, "p_v", stride, ("r_c", "o_v"), ("BC", "BV"), region, guard=guard, start="i_c * BC"
        )
    )
    if values is not None:
        map_value(builder, facts.algebra, values, facts.printer, region, ("BC", "BV"), guard=guard)


def value_setup(
    builder: GraphBuilder, facts: ChunkFacts, axes: Mapping[str, Axis] = CHUNKED
) -> Loaded:
    """Loads of what the declared value reads; those that stand before the loop are added."""
    loaded = load_value(facts.variant, facts.algebra, axes)
    setup_nodes(builder, loaded)
    return loaded


def decay_setup(
    builder: GraphBuilder,
    facts: ChunkFacts,
    axes: Mapping[str, Axis] = TOKEN_AXES,
    region: str = SETUP,
) -> Loaded:
    """Loads of the decay's tensors; for a constant decay, its rate `b_c`.

    `region` is where the program knows its query head.
    """
    algebra = facts.algebra
    if algebra.by_channel:
        heads = "(i_b * HS + i_h // (HQ // HS))" if builder.kernel.startswith("d") else "i_bh"
        heads = "(i_b * HS + i_hs)" if builder.kernel == "output" else heads
        builder.map("p_gates", region, (), f"p_gates = gates + {heads} * T * K")
        return Loaded((), {}, (gates_argument(),))
    if algebra.log_decay is None:
        return Loaded((), {}, ())
    declared = (*facts.variant.params, *facts.variant.inputs)
    loaded = load_refs(
        algebra.decay_refs, declared, axes,
        two_lanes=False, names=scalar_names(algebra.log_decay, declared),
    )  # fmt: skip
    builder.extend(node for node in loaded.nodes if node.region == SETUP)
    lines, index = index_bindings(algebra.log_decay)
    loaded = Loaded(loaded.nodes, {**loaded.bindings, **index}, loaded.tensors)
    reads = tuple(node.buffer for node in loaded.nodes)
    if algebra.decay == "constant":
        rate = constant_decay(algebra.log_decay, loaded.bindings, facts.printer)
        if region == STEP:
            builder.extend(node for node in loaded.nodes if node.region == STEP)
        builder.map("b_c", region, (), *lines, *rate, reads=reads, note="log2 decay a token")
    elif lines:
        builder.map("f_index", region, (), *lines, note="indices as numbers")
    return loaded


def decay_step(
    builder: GraphBuilder, facts: ChunkFacts, loaded: Loaded, *, total: bool = True
) -> None:
    """`b_g[c]`: log2 decay from the chunk's start through token c; `b_gl`: of all of it."""
    algebra = facts.algebra
    if algebra.by_channel:
        load_chunk_gates(builder, STEP, total=total)
        return
    note = "log2 decay from the chunk's start through each token"
    if algebra.decay == "constant":
        count = "n_c = tl.minimum(BC, T - i_c * BC)"
        through = "b_g = tl.minimum(r_c + 1, n_c) * b_c"
        builder.map("b_g", STEP, ("BC",), count, through, reads=("b_c",), note=note)
        if total:
            builder.map("b_gl", STEP, (), "b_gl = n_c * b_c", reads=("b_c", "b_g"))
    elif algebra.decay == "gated":
        assert algebra.log_decay is not None
        builder.extend(node for node in loaded.nodes if node.region == STEP)
        gate = gate_lines(algebra.log_decay, loaded.bindings, facts.printer)
        reads = tuple(node.buffer for node in loaded.nodes)
        builder.map("b_a", STEP, ("BC",), *gate, reads=reads, note="log2 decay of each token")
        builder.scan("b_g", STEP, ("BC",), "b_g = tl.cumsum(b_a, 0)", reads=("b_a",), note=note)
        if total:
            # the last of them itself: a sum rounds another way, which the last token would feel
            last = "b_gl = tl.sum(tl.where(r_c == BC - 1, b_g, 0.0), 0)"
            builder.reduce("b_gl", STEP, (), last, reads=("b_g",))


def gate_lines(
    log_decay: sympy.Expr, bindings: Mapping[str, str], printer: Printer
) -> tuple[str, ...]:
    """`b_a` = the log2 decay of each token, 0 in padding."""
    bound = printer.bound(bindings)
    masked = f"b_a = tl.where(m_t, b_a * {number(LOG2E)}, 0.0)"
    return (*bound.statements("b_a", log_decay), masked)
