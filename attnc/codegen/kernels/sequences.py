"""Packed sequences: which one a program belongs to, and every pointer moved to where it starts.

After these statements TQ and TK are the lengths of one sequence, `i_b` is 0, and the rest of a
kernel is that of a call of its own. Sequences may be empty. Nothing is computed beforehand: tiles
of sequence n start at slot cu_seqlens[n] // tile + n, which leaves each the slots that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.kernel import Kernel, TensorArgument

# rows of [heads, rows] workspaces, by what their second axis counts
_BY_ROW = {"lse", "dlse", "norm", "delta", "drows", "folded_scores", "folded_weights"}
_WIDTHS = {
    "o": "HQ * V", "dq": "HQ * K", "dk": "HKV * K", "dv": "HKV * V",
    "folded_dq": "HQ * K", "folded_dk": "HQ * K", "folded_dv": "HQ * V",
}  # fmt: skip


Lanes = Mapping[str, tuple[str, ...]]


def in_sequences(kernel: Kernel, algebra: Algebra, sums: Lanes | None = None) -> Kernel:
    """The kernel over packed sequences where the variant asks for them, else as it is.

    `sums` are the axes of workspaces of partial sums after batch and head: `n` a tile, `i` a row,
    `t` and `j` a key, then perhaps channels.
    """
    if not algebra.mask.packed:
        return kernel
    bounds = tuple(
        TensorArgument(
            f"u_cu_seqlens_{side}", (), "i32", "[N + 1]: where sequences start",
            given=f"cu_seqlens_{side}",
        )
        for side in "qk"
    )  # fmt: skip
    read = tuple(tensor for tensor in kernel.tensors if not tensor.written)
    written = tuple(tensor for tensor in kernel.tensors if tensor.written)
    apart = " * K" if algebra.by_channel else ""
    lines: list[str] = []
    for tensor in kernel.tensors:
        lines += _moved(tensor, kernel.name, sums or {}, apart)
    if kernel.name in {"gates", "channel_gates"}:
        lines = [
            "s_k = tl.load(u_cu_seqlens_k + i_n)",
            "NK = T",
            "T = tl.load(u_cu_seqlens_k + i_n + 1) - s_k",
            "s_k = s_k.to(tl.int64)",
            *lines,
        ]
        bounds = bounds[1:]
    else:
        lines = [*_lengths(kernel.name), *lines]
    return replace(
        kernel,
        tensors=(*read, *bounds, *written),
        scalars=(*kernel.scalars, "N"),
        sequence_lines=tuple(lines),
    )


def _lengths(kernel: str) -> list[str]:
    """The sequence of a slot, its lengths, and the tile that the slot is of it."""
    side, tile, count, program = ("q", "BT", "TQ", "i_t")
    if kernel == "dkv":
        side, tile, count, program = ("k", "BS", "TK", "i_s")
    slots = kernel not in {"dgates", "dchannel_gates"}
    lines: list[str] = []
    if slots:
        lines += [
            f"# the last sequence that starts no later: at slot cu_seqlens[n] // {tile} + n",
            "i_n = 0",
            "above = N",
            "while above - i_n > 1:",
            "    half = (i_n + above) // 2",
            f"    passed = tl.load(u_cu_seqlens_{side} + half) // {tile} + half <= i_slot",
            "    i_n = tl.where(passed, half, i_n)",
            "    above = tl.where(passed, above, half)",
        ]
    lines += [
        "# NQ rows and NK keys in all; TQ and TK are those of this sequence",
        "NQ = TQ",
        "NK = TK",
    ]
    for letter, name in (("q", "TQ"), ("k", "TK")):
        lines.append(f"s_{letter} = tl.load(u_cu_seqlens_{letter} + i_n)")
        lines.append(f"{name} = tl.load(u_cu_seqlens_{letter} + i_n + 1) - s_{letter}")
    if slots:
        lines += [
            f"{program} = i_slot - s_{side} // {tile} - i_n",
            "# a slot that the sequence does not need has nothing to do",
            f"spare = {program} * {tile} >= {count}",
            "TQ = tl.where(spare, 0, TQ)",
            "TK = tl.where(spare, 0, TK)",
        ]
    return [*lines, "s_q = s_q.to(tl.int64)", "s_k = s_k.to(tl.int64)"]


def _moved(tensor: TensorArgument, kernel: str, sums: Lanes, apart: str) -> list[str]:
    """The statement that moves a pointer to the sequence's own part of its tensor.

    `apart` is the factor of an address where a decay's sums are kept a channel.
    """
    name = tensor.name
    # the `dkv` pass walks over heads: what is [heads, tokens] gets its head's part there
    rows, keys = "s_q", "s_k"
    if kernel != "dkv":
        rows, keys = f"{rows} + i_h * (NQ - TQ)", f"{keys} + i_h * (NK - TK)"
    place = ""
    if name in {"q", "do"}:
        place = f"s_q * stride_{name}_t"
    elif name in {"k", "v"}:
        place = f"s_k * stride_{name}_t"
    elif name in _WIDTHS:
        place = f"{'s_q' if name in {'o', 'dq', 'folded_dq'} else 's_k'} * {_WIDTHS[name]}"
    elif name in _BY_ROW:
        place = rows
    elif name == "dcolumns":
        place = keys
    elif name == "gates":
        head = "i_h // (HQ // HS) * (NK - TK)"
        head = "i_bh * (NK - T)" if kernel in {"gates", "channel_gates"} else head
        place = "s_k" if kernel == "dkv" else f"s_k + {head}"
    elif name in sums:
        lane, *channels = sums[name]
        place = {"n": "i_slot - i_t", "i": rows}.get(lane, keys)
        if lane == "n" and kernel in {"dgates", "dchannel_gates"}:
            # a place a sequence, or one a chunk of it
            place = "" if kernel == "dgates" else "s_k // BC + i_n"
        width = "".join({"c": " * V", "k": " * K"}[channel] for channel in channels)
        place = f"({place}){width}" if width else place
    elif tensor.given:
        place = declared_start(tensor, "i_n")
    if apart and name in {"gates", "drows", "dcolumns"}:
        place = f"({place}){apart}"
    return [f"{name} = {name} + {place}"] if place else []


def declared_start(tensor: TensorArgument, sequence: str) -> str:
    """Where a declared tensor's part of a sequence starts: its tokens, or the entry for it."""
    wide = f"tl.cast({sequence}, tl.int64)"
    for axis, start in (("t", "s_k"), ("j", "s_k"), ("i", "s_q"), ("b", wide)):
        if axis in tensor.axes:
            return f"{start} * stride_{tensor.name}_{axis}"
    return ""
