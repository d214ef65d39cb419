"""Host time of a call: a whole op without and with gradients, one launch, and Triton's own.

python -m benchmarks.overhead OUT.json

Shapes are small, so that the device waits for the host; each figure is the median over rounds of
the mean of many calls, in microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import attnc
from attnc.autotune.fast_kernel import FastKernel
from attnc.ops.shipped import shipped
from benchmarks.record import write

CASES = (
    ("flash", (1, 128, 2, 64, 64)),
    ("flash", (1, 1, 2, 64, 64)),
    ("lightning", (1, 1024, 2, 64, 64)),
    ("based", (1, 1024, 2, 16, 64)),
)


def host_us(call: Callable[[], Any], repeats: int = 300, rounds: int = 9) -> float:
    """Microseconds a call keeps the host."""
    call()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        found.append((time.perf_counter() - start) / repeats * 1e6)
    torch.cuda.synchronize()
    return round(statistics.median(found), 2)


def run(name: str, shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One op at one shape."""
    batch, tokens, heads, qk, v_dim = shape
    op = attnc.compile(shipped()[name])
    q, k, v = (
        torch.randn(batch, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
        for dim in (qk, qk, v_dim)
    )
    extra = {d.name: torch.rand(heads, device="cuda") for d in op.variant.params}
    row: dict[str, Any] = {"case": name, "shape": shape}
    with torch.no_grad():
        row["op_us"] = host_us(lambda: op(q, k, v, **extra))
        row["empty_us"] = host_us(lambda: torch.empty_like(q))
        (built,) = op.built_plans.by_kind.values()
        launches = _launches(built.run, [q, k, v, *extra.values()])
        row["kernels"] = len(launches)
        row["replayed_launch_us"] = _replayed_launch_us(op)
        row["launch_us"] = host_us(lambda: [fast() for fast, _ in launches]) / len(launches)
        row["triton_launch_us"] = host_us(lambda: [own() for _, own in launches]) / len(launches)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    row["with_grad_us"] = host_us(lambda: op(*leaves, **extra))
    do = torch.randn_like(op(*leaves, **extra))
    both = lambda: torch.autograd.grad(op(*leaves, **extra), leaves, do)  # noqa: E731
    row["forward_backward_us"] = host_us(both)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = op(q, k, v, **extra)
    captured.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        row["graph_equal"] = torch.equal(captured, op(q, k, v, **extra))
    yield row


def _replayed_launch_us(op: attnc.Op) -> float:
    """One launch of a call that is replayed: its addresses gathered, the driver called."""
    (seen,) = op._seen._by_key.values()
    (replay,) = seen.replays.values()
    assert replay is not None, "the call was not replayed"
    stream = torch._C._cuda_getCurrentRawStream(replay.device.index)
    table = [x.data_ptr() for x in (torch.empty(1 << 22, device="cuda"),) * 64]

    def launch() -> None:
        for hand_over, run, check, taken in replay.launches:
            hand_over(stream, *taken(table))
            check(run())

    return host_us(launch) / len(replay.launches)


def _launches(run: Any, arguments: list[Any]) -> list[tuple[Callable[[], Any], Callable[[], Any]]]:
    """Every launch of one call, through the fast path and through Triton."""
    found: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
    space = run.__globals__
    kernels = {name: x for name, x in space.items() if isinstance(x, FastKernel)}

    class Recorder:
        def __init__(self, kernel: FastKernel) -> None:
            self.kernel = kernel

        def launch(self, grid: Any, tensors: Any, numbers: Any) -> None:
            fast, own, constants = self.kernel, self.kernel._kernel, self.kernel._constants
            fast.launch(grid, tensors, numbers)
            found.append(
                (
                    lambda: fast.launch(grid, tensors, numbers),
                    lambda: own[grid](*tensors, *numbers, **constants),
                )
            )

    try:
        space.update({name: Recorder(kernel) for name, kernel in kernels.items()})
        run(*arguments)
    finally:
        space.update(kernels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, shape in CASES:
        for row in run(name, shape):
            rows.append(row)
            print(row, flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
