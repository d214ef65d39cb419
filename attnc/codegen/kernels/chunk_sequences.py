"""Packed sequences in passes over chunks: each sequence has chunks and segments of its own.

A program's slot says which sequence it belongs to and which of its segments, or chunks, it takes.
After these statements T is the length of that sequence and every pointer stands at its first
token, so that it is cut exactly as a call of its own cuts it: what comes out has the same bits.
Segments of sequence n start at slot min(n * MS, cu_seqlens[n] // (MC * BC) + n), where MS is the
most that any sequence has and MC the fewest chunks of one; chunks at cu_seqlens[n] // BC + n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.sequences import Lanes, declared_start
from attnc.codegen.tile_range import KeyLoop

_SEGMENTS = {
    "state", "output", "sum_output", "carry", "dstate", "dcarry", "walk_dq", "walk_dkv", "walk_dk",
    "walk_dv",
}  # fmt: skip
_CHUNKS = {"chunk_gates", "pairs", "dpairs", "dquery", "dkey", "dvalue"}
_SCANS = {
    "scan": KeyLoop("0", "segments", True, "from segment to segment"),
    "dscan": KeyLoop("segments - 1", "-1", True, "from segment to segment, the last one first"),
}
# passes over the chunks of a key/value head know their query head inside a loop
_BY_GROUP = {"dquery", "dkey", "dvalue"}
# programs of these passes belong to a state head, all others to a query head
_BY_STATE = {"state", "carry", "scan", "chunk_gates"}
# times the sizes of states it passes 2**31
_SEQUENCE = "tl.cast(i_seq, tl.int64)"
_ROWS = {"norm", "lse", "delta", "drows", "folded_scores", "folded_weights"}
_STARTS = TensorArgument(
    "u_cu_seqlens_k", (), "i32", "[N + 1]: where sequences start", given="cu_seqlens_k"
)


def chunks_in_sequences(
    kernel: Kernel, algebra: Algebra, sums: Lanes | None = None, *, needed: str = "segments"
) -> Kernel:
    """A pass of the chunked or the recurrent form over packed sequences, or as it is.

    `sums` are the axes of workspaces of partial sums after batch and head, and `needed` how many
    segments of a sequence anybody reads.
    """
    if not algebra.mask.packed or kernel.name == "delta":
        return kernel
    constants, scalars = kernel.constants, kernel.scalars
    if kernel.name not in _CHUNKS and kernel.name != "recurrent":
        scalars = (*(name for name in scalars if name != "CPS"), "MS")
        constants = (*constants, "MC")
    lines = _own_tokens()
    if any(_by_tokens(tensor, sums or {}) for tensor in kernel.tensors):
        lines = ["# NK tokens in all; T are those of this sequence", "NK = T", *lines[1:]]
    if kernel.name in _CHUNKS:
        lines = _chunk_lines(lines)
    elif kernel.name in _SEGMENTS:
        lines = _segment_lines(lines, needed)
    elif kernel.name in _SCANS:
        lines += _segment_counts()
    places = {t.name: _place(t, kernel.name, algebra, sums or {}) for t in kernel.tensors}
    if any("s_k" in place for place in places.values()):
        lines.append("s_k = s_k.to(tl.int64)")
    lines += [f"{name} = {name} + {place}" for name, place in places.items() if place]
    return replace(
        kernel,
        tensors=(
            *(tensor for tensor in kernel.tensors if not tensor.written),
            _STARTS,
            *(tensor for tensor in kernel.tensors if tensor.written),
        ),
        scalars=(*scalars, "N"),
        constants=constants,
        loops=(_SCANS[kernel.name],) if kernel.name in _SCANS else kernel.loops,
        sequence_lines=tuple(lines),
    )


def _search(note: str, starts: Sequence[str]) -> list[str]:
    """Bisection for the last sequence whose slots start no later than this one."""
    return [
        f"# {note}",
        "i_seq = 0",
        "above = N",
        "while above - i_seq > 1:",
        "    half = (i_seq + above) // 2",
        *(f"    {line}" for line in starts),
        "    passed = slot <= i_slot",
        "    i_seq = tl.where(passed, half, i_seq)",
        "    above = tl.where(passed, above, half)",
    ]


def _own_tokens() -> list[str]:
    return [
        "# T tokens are those of this sequence",
        "s_k = tl.load(u_cu_seqlens_k + i_seq)",
        "T = tl.load(u_cu_seqlens_k + i_seq + 1) - s_k",
    ]


def _segment_counts() -> list[str]:
    return [
        "# its own segments, of CPS chunks each, as a call of its own has them",
        "chunks = tl.cdiv(T, BC)",
        "segments = tl.maximum(1, tl.minimum(MS, chunks // MC))",
        "CPS = tl.maximum(1, tl.cdiv(chunks, segments))",
        "segments = tl.cdiv(chunks, CPS)",
        "first_slot = tl.minimum(i_seq * MS, s_k // (MC * BC) + i_seq).to(tl.int64)",
    ]


def _segment_lines(tokens: Sequence[str], needed: str) -> list[str]:
    starts = (
        "slot = tl.load(u_cu_seqlens_k + half) // (MC * BC) + half",
        "slot = tl.minimum(half * MS, slot)",
    )
    note = "the last sequence whose first slot is no later; none takes more than MS"
    return [
        *_search(note, starts),
        *tokens,
        *_segment_counts(),
        "i_n = (i_slot - first_slot).to(tl.int32)",
        "# a slot that nobody needs has nothing to do",
        f"if i_n >= {needed}:",
        "    return",
    ]


def _chunk_lines(tokens: Sequence[str]) -> list[str]:
    starts = ("slot = tl.load(u_cu_seqlens_k + half) // BC + half",)
    note = "the last sequence whose first slot, cu_seqlens[n] // BC + n, is no later"
    return [
        *_search(note, starts),
        *tokens,
        "first_slot = (s_k // BC + i_seq).to(tl.int64)",
        "i_c = (i_slot - first_slot).to(tl.int32)",
        "# a slot that the sequence does not need has nothing to do",
        "if i_c * BC >= T:",
        "    return",
    ]


def _by_tokens(tensor: TensorArgument, sums: Lanes) -> bool:
    """Whether it is a workspace [heads, tokens], whose heads lie NK tokens apart."""
    name = tensor.name
    return name in {*_ROWS, "gates", "pairs"} or (name in sums and sums[name][0] != "n")


def _place(tensor: TensorArgument, kernel: str, algebra: Algebra, sums: Lanes) -> str:
    """How far a sequence's own part of a tensor lies behind its start; empty for none."""
    name = tensor.name
    # a workspace [heads, tokens] of a program that knows its head gets the head's part moved too
    tokens = "s_k" if kernel in _BY_GROUP else "(i_bh * (NK - T) + s_k)"
    summed = algebra.state.normalize == "sum"
    columns, slot = ("(V + 1)", "(FP * V + FP)") if summed else ("V", "FP * V")
    if tensor.given:
        return declared_start(tensor, "i_seq")
    if name in {"q", "k", "v", "do"}:
        return f"s_k * stride_{name}_t"
    if name in {"state", "sums", "final_sums"} and kernel == "recurrent":
        return f"{_SEQUENCE} * stride_{name}_b"
    if name in sums:
        lane, *channels = sums[name]
        width = "".join({"c": " * V", "k": " * K"}[channel] for channel in channels)
        # `n` counts chunks, whatever else tokens; the latter lie NK apart
        return f"{'first_slot' if lane == 'n' else 's_k'}{width}"
    if algebra.global_sum and name in {"states", "carried", "dcarried"}:
        # one sum over all keys a sequence
        return f"{_SEQUENCE} * {slot}"
    chunk_slot = "(s_k // BC + i_seq)" if kernel in _SEGMENTS else "first_slot"
    heads = "HKV" if kernel in _BY_GROUP else "HQ"
    return {
        "o": "s_k * HQ * V",
        "dq": "s_k * HQ * K",
        "dk": f"s_k * {heads} * K",
        "dv": f"s_k * {heads} * V",
        **dict.fromkeys(("dkeys", "folded_dq", "folded_dk"), "s_k * HQ * K"),
        "folded_dv": "s_k * HQ * V",
        **dict.fromkeys(_ROWS, "s_k" if kernel == "recurrent" else tokens),
        "gates": f"{_gates(kernel)} * K",
        "pairs": f"{tokens} * BC",
        "states": f"first_slot * {slot}",
        "decays": f"first_slot{' * FP' if algebra.by_channel else ''}",
        "carried": f"{chunk_slot} * FP * V",
        "dcarried": f"{chunk_slot} * FP * V",
        "sums": f"{chunk_slot} * FP",
        "dsums": f"{chunk_slot} * FP",
        "initial_state": f"{_SEQUENCE} * HS * F * {columns}",
        "final_state": f"{_SEQUENCE} * HS * F * {columns}",
        "dfinal": f"{_SEQUENCE} * HS * F * {columns}",
        "dinitial": f"{_SEQUENCE} * HQ * F * {columns}",
    }.get(name, "")


def _gates(kernel: str) -> str:
    """The sums of a decay a channel are those of state heads."""
    if kernel in _BY_GROUP:
        return "s_k"
    head = "i_bh" if kernel in _BY_STATE else "i_bh // (HQ // HS)"
    return f"({head} * (NK - T) + s_k)"
