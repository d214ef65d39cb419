"""What a pass takes, from its graph alone: SRAM by liveness, registers, HBM bytes, FLOPs, time.

No constant here belongs to a variant. SRAM has a module of its own, `sram`.
"""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.device import Device
from attnc.codegen.graph import STEP, KernelGraph, elements
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, Cost, item_bytes
from attnc.codegen.sram.peak import NEWEST, Release, sram_of


def estimate(
    kernel: Kernel,
    tiles: Mapping[str, int],
    *,
    io: str,
    num_warps: int,
    num_stages: int,
    device: Device,
    work: tuple[float, float],
    precision: str = "tf32x3",
    release: Release = NEWEST,
) -> Cost:
    """The cost of one pass; `work` is (HBM bytes, FLOPs) of the whole launch at the workload.

    `release` is the Triton whose allocator is predicted: the newest by default, so that a plan does
    not depend on what is installed.
    """
    # walks run one after the other: the hungriest decides
    walks = [
        sram_of(
            graph,
            tiles,
            io=io,
            num_warps=num_warps,
            num_stages=num_stages,
            device=device,
            precision=precision,
            release=release,
        )
        for graph in kernel.graph.walks
    ]
    sram = max(walks, key=lambda found: found.nbytes)
    hbm_bytes, flops = work
    rate = device.tflops * 1e12 * _speed(kernel.graph, tiles, io)
    time_us = max(hbm_bytes / (device.tbps * 1e12), flops / rate) * 1e6
    registers = register_estimate(kernel.graph, tiles, io=io, num_warps=num_warps, device=device)
    return Cost(sram.nbytes, registers, int(hbm_bytes), int(flops), time_us, sram.buffers)


def _speed(graph: KernelGraph, tiles: Mapping[str, int], io: str) -> float:
    """The rate of a pass's products as a share of that of 16-bit tensors."""
    item = DTYPES[io]
    if item != 1:
        return 1.0 if item == 2 else 0.12
    # products of bytes run twice as fast; what was widened for one does not
    made = {node.buffer: node.dtype for node in graph.nodes() if node.op != "store"}
    done, taken = 0.0, 0.0
    for node in graph.nodes(STEP):
        if node.left is None or node.right is None:
            continue
        shape = (*node.left.shape, node.right.shape[1])
        work = float(elements(shape, dict(tiles)))
        done += work
        taken += work / (2.0 if made[node.right.buffer] == "io" else 1.0)
    return done / taken if taken else 1.0


def register_estimate(
    graph: KernelGraph, tiles: Mapping[str, int], *, io: str, num_warps: int, device: Device
) -> int:
    """Registers a thread: what the loop carries, plus the largest tile alive beside it."""
    threads = num_warps * device.warp_size
    carried: dict[str, int] = {}
    largest = 0
    for node in graph.nodes():
        if not node.shape:
            continue
        words = elements(node.shape, dict(tiles)) * max(4, item_bytes(node.dtype, io)) // 4
        if node.carried:
            carried[node.buffer] = words
        elif node.op in {"dot", "map"} and node.region == STEP:
            largest = max(largest, words)
    return 24 + (sum(carried.values()) + largest) // threads
