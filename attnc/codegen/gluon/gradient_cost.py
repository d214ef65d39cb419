"""What a candidate of a backward's pass over pairs takes: buffers, barriers, registers, work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from attnc.codegen.gluon.planner import BARRIER, aligned
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, FUSED, BufferUse, Cost, PassPlan, Request
from attnc.codegen.planning.work import pass_work
from attnc.codegen.warp_groups import GROUP_ROWS

# what partitions are handed: by all kernels, by argument, by partition, and by a fused pass besides
_HANDED, _HANDED_ARGUMENT, _HANDED_PARTITION, _HANDED_FUSED = 288, 16, 4, 84
# registers that a thread needs beside its tiles
_BESIDE = 24


@dataclass(frozen=True, slots=True)
class PairTiles:
    """What a step streams, in rows or keys; consumer groups of 64; stages of what is streamed."""

    streamed: int
    groups: int
    stages: int


def pair_step(request: Request, kernel: Kernel, columns: int, tiles: PairTiles) -> PassPlan:
    """A candidate of `dq`, `dkv` or `dqkv`: its tiles, what they take and what they cost."""
    held = GROUP_ROWS * tiles.groups
    by_rows = kernel.name == "dq"
    rows, keys = (held, tiles.streamed) if by_rows else (tiles.streamed, held)
    sizes = {"BT": rows, "BS": keys, "BK": columns, "BV": columns, "NW": tiles.groups}
    if kernel.name == FUSED:
        # a group's part of a tile of dq: a share of its rows, else of its channels
        sizes["BP"] = columns * tiles.streamed // (GROUP_ROWS * tiles.groups)
    buffers = _buffers(request, kernel, held, columns, tiles)
    # two tiles of pairs, one as the left side of a product, and the accumulators; 128 threads
    totals = 1 if by_rows else 2
    words = (2.5 * tiles.streamed + totals * columns) * GROUP_ROWS / 128
    hbm_bytes, flops = pass_work(request, kernel, sizes)
    seconds = max(hbm_bytes / (request.device.tbps * 1e12), flops / (request.device.tflops * 1e12))
    cost = Cost(
        sum(use.nbytes * use.copies for use in buffers),
        _BESIDE + int(words),
        int(hbm_bytes),
        int(flops),
        seconds * 1e6,
        buffers,
    )
    return PassPlan(kernel, tuple(sizes.items()), 4 * (tiles.groups + 1), tiles.stages, cost)


def _buffers(
    request: Request, kernel: Kernel, held: int, columns: int, tiles: PairTiles
) -> tuple[BufferUse, ...]:
    item, dtype = DTYPES[request.dtype], request.dtype
    names = ("b_q", "b_do", "b_k", "b_v") if kernel.name == "dq" else ("b_k", "b_v", "b_q", "b_do")
    of_held = ((held, columns), dtype, "sram", held * columns * item)
    moved = ((tiles.streamed, columns), dtype, "sram", tiles.streamed * columns * item)
    # lse and delta of the rows that a step streams come beside them
    brought = () if kernel.name == "dq" else ("b_m", "b_d")
    row = BufferUse("", (tiles.streamed,), "fp32", "sram", 4 * tiles.streamed, tiles.stages)
    arrays = 5 if brought else 4
    barriers = aligned(tiles.groups * BARRIER) + arrays * aligned(tiles.stages * BARRIER)
    fused: tuple[BufferUse, ...] = ()
    if kernel.name == FUSED:
        barriers += aligned(2 * BARRIER) + aligned(BARRIER)
        pairs = (GROUP_ROWS, tiles.streamed)
        part = (GROUP_ROWS, columns * tiles.streamed // (GROUP_ROWS * tiles.groups))
        fused = (
            BufferUse("b_ds", pairs, dtype, "sram", prod(pairs) * item, 2 * tiles.groups),
            BufferUse("b_dq", part, "fp32", "sram", 4 * prod(part), tiles.groups),
        )
    given = [tensor for tensor in kernel.tensors if tensor.box is None]
    more = sum(1 + len(tensor.strides) for tensor in given)
    handed = _HANDED + _HANDED_PARTITION * (tiles.groups + 1) + more * _HANDED_ARGUMENT
    handed += _HANDED_FUSED if fused else 0
    return (
        BufferUse(names[0], *of_held),
        BufferUse(names[1], *of_held),
        BufferUse(names[2], *moved, tiles.stages),
        BufferUse(names[3], *moved, tiles.stages),
        *(replace(row, name=name) for name in brought),
        *fused,
        BufferUse("bars", (barriers,), "int8", "sram", barriers),
        BufferUse("args", (handed,), "int8", "sram", handed),
    )
