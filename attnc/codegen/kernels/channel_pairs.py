"""The `pairs` pass: the weights inside a chunk where every channel decays by itself.

exp(G_i - G_j) cannot be split into a factor of i and one of j that both stay in range over a whole
chunk: one overflows where the other underflows. Halving does it. A block of tokens is cut in two;
from a token of the later half to one of the earlier half, decay runs over the boundary between
them, and so is exp(G_i - G_b) * exp(G_b - G_j) with neither factor above 1. That is one product of
matrices for all blocks of one size. Blocks of 2, 4, .. BC tokens are all levels, and each pair of
tokens is cut apart at exactly one of them; a token with itself decays by nothing.
Source: the secondary chunks of Yang et al. 2023 (arXiv 2312.06635), section 4.3, halved to the end.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.channel_gates import gates_argument, load_chunk_gates
from attnc.codegen.kernels.chunk import ChunkFacts, load_rows
from attnc.codegen.tile_range import KeyLoop

SQUARE = ("BC", "BC")
LEVELS = KeyLoop("0", "LEVELS", True, "blocks of 2, 4, .. BC tokens, each cut in two halves")
PAIRS = "[B, HQ, T, BC]: weights inside the chunk"


def pairs_kernel(facts: ChunkFacts) -> Kernel:
    """One program: one chunk of one query head."""
    builder = GraphBuilder("pairs")
    load_rows(builder, facts, "q", SETUP)
    load_rows(builder, facts, "k", SETUP)
    load_chunk_gates(builder, SETUP, total=False)
    own = "b_w = tl.sum(b_q.to(ACC) * b_k.to(ACC), 1)[:, None]"
    line = "b_w = tl.where(r_c[:, None] == r_c[None, :], b_w, 0.0)"
    note = "a token with itself: no decay lies between"
    builder.fold("b_w", SETUP, SQUARE, own, line, reads=("b_q", "b_k"), note=note)
    level_decay(builder)
    later = "b_qe = tl.where(m_l[:, None], b_q * b_e, 0.0)"
    earlier = "b_ke = tl.where(m_l[:, None], 0.0, b_k * b_e)"
    rows = ("BC", "BK")
    builder.map("b_qe", STEP, rows, later, dtype="io", reads=("b_q", "b_e"))
    builder.map("b_ke", STEP, rows, earlier, dtype="io", reads=("b_k", "b_e"))
    left = Operand("b_qe", "b_qe", ("BC", "BK"))
    right = Operand("b_ke", "tl.trans(b_ke)", ("BK", "BC"), transposed=True)
    builder.dot("b_s", STEP, SQUARE, left, right, note="[BC, BK] @ [BK, BC]")
    line = "b_w = b_w + tl.where(r_b[:, None] == r_b[None, :], b_s, 0.0)"
    note = "pairs of one block, cut apart at this level"
    reads = ("b_w", "b_s", "r_b")
    builder.fold("b_w", STEP, SQUARE, line, name="fold b_w", reads=reads, note=note)
    builder.store(
        FINISH, SQUARE, "b_w.to(pairs.dtype.element_ty)", name="store pairs", reads=("b_w",),
        tensor="pairs", guard="m_t[:, None]", address=f"{pairs_address()} + r_c[None, :]",
    )  # fmt: skip
    tensors = (
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, T, HQ, K]"),
        TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, T, HKV, K]"),
        gates_argument(),
        TensorArgument("pairs", (), "io", PAIRS, written=True),
    )
    scalars, constants = ("T", "HQ", "HKV", "HS"), ("K", "BC", "BK", "LEVELS")
    return Kernel("pairs", "", tensors, scalars, constants, builder.build(), loops=(LEVELS,))


def pairs_address() -> str:
    """The rows of a chunk in the workspace, where a program knows its query head."""
    return "pairs + ((i_b * HQ + i_h) * T + o_t)[:, None] * BC"


def pairs_argument() -> TensorArgument:
    """The workspace as the passes after read it."""
    return TensorArgument("pairs", (), "io", PAIRS)


def level_decay(builder: GraphBuilder) -> None:
    """`b_e[c, k]` = decay between token c and the boundary of its block, `m_l` = who is later.

    `r_b` numbers the blocks. In the later half it decays the query, in the earlier one the key.
    """
    lines = ("r_b = r_c >> (i_l + 1)", "m_l = (r_c >> i_l) % 2 == 1")
    note = "blocks of this level, and which tokens stand in the later half of theirs"
    builder.map("r_b", STEP, ("BC",), *lines, dtype="i32", note=note)
    builder.load(
        "b_gb", STEP, ("BC", "BK"), dtype="fp64", tensor="gates", reads=("r_b", "p_gates"),
        lines=("o_b = i_c * BC + ((2 * r_b + 1) << i_l) - 1",),
        address="p_gates + o_b.to(tl.int64)[:, None] * K + o_k[None, :]",
        guard="(o_b < T)[:, None] & m_k[None, :]",
        note="the sum at the boundary: through the last token of the earlier half",
    )  # fmt: skip
    line = "b_e = tl.exp2(-tl.abs(b_g - b_gb).to(ACC))"
    note = "decay between token and boundary: at most 1 on either side"
    builder.map("b_e", STEP, ("BC", "BK"), line, reads=("b_g", "b_gb"), note=note)
