"""Host time of a call: a whole op without and with gradients, one launch, and Triton's own.

python -m benchmarks.overhead OUT.json

Shapes are small, so that the device waits for the host; each figure is the median over rounds of
the mean of many calls, in microseconds. A row: the op without grad (`op_us`), what of it is the
replay, the guard and `torch.empty`; a launch in C, by ctypes, and by Triton.
"""

from __future__ import annotations

import argparse
import inspect
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
    ("flash", "triton", (1, 128, 2, 64, 64)),
    ("flash", "triton", (1, 1, 2, 64, 64)),
    ("lightning", "triton", (1, 1024, 2, 64, 64)),
    ("based", "triton", (1, 1024, 2, 16, 64)),
    ("flash", "gluon", (1, 128, 2, 128, 128)),
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


def run(name: str, backend: str, shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One op at one shape."""
    batch, tokens, heads, qk, v_dim = shape
    op = attnc.compile(shipped()[name], backend=backend)
    q, k, v = (
        torch.randn(batch, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
        for dim in (qk, qk, v_dim)
    )
    extra = {d.name: torch.rand(heads, device="cuda") for d in op.variant.params}
    row: dict[str, Any] = {"case": name, "backend": backend, "shape": shape}
    with torch.no_grad():
        row["op_us"] = host_us(lambda: op(q, k, v, **extra))
        row["empty_us"] = host_us(lambda: torch.empty_like(q))
        (built,) = op.built_plans.by_kind.values()
        latest = op._seen._latest
        assert latest is not None, "no guard holds"
        given, replay = (q, k, v, *extra.values()), latest.seen.threads.replay
        assert replay is not None, "the call was not replayed"
        row["guard_us"] = host_us(lambda: latest.holds(*given))
        row["replay_us"] = host_us(lambda: replay.run(given))
        row["launcher"] = "ctypes" if replay.native is None else "c"
        launches = _launches(built.run, list(given))
        row["kernels"] = len(launches)
        for way in launches[0]:
            queued = [launch[way] for launch in launches]
            spent = host_us(lambda queued=queued: [launch() for launch in queued])
            row[way] = round(spent / len(launches), 2)
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


def _launches(run: Any, arguments: list[Any]) -> list[dict[str, Callable[[], Any]]]:
    """Every launch of one call, in C, by ctypes and through Triton."""
    found: list[dict[str, Callable[[], Any]]] = []
    space = inspect.unwrap(run).__globals__
    kernels = {name: x for name, x in space.items() if isinstance(x, FastKernel)}
    device = torch.cuda.current_device()
    stream = torch._C._cuda_getCurrentRawStream(device)

    class Recorder:
        def __init__(self, kernel: FastKernel) -> None:
            self.kernel = kernel

        def launch(self, grid: Any, tensors: Any, numbers: Any) -> None:
            fast = self.kernel
            fast.launch(grid, tensors, numbers)
            prepared = fast.remembered(device, numbers)
            assert prepared is not None, "launched and not remembered"
            pointers = [x.data_ptr() for x in tensors]
            write, queue = prepared.on(grid)
            ways: dict[str, Callable[[], Any]] = {
                "ctypes_launch_us": lambda: (write(stream, *pointers), queue()),
                "triton_launch_us": lambda: fast._run(grid, tensors, numbers),
            }
            if prepared.kernel is not None:
                in_c = prepared.kernel.launch
                ways = {"launch_us": lambda: in_c(*grid, stream, *pointers), **ways}
            found.append(ways)

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
    for name, backend, shape in CASES:
        if backend == "gluon" and torch.cuda.get_device_capability() != (9, 0):
            continue
        for row in run(name, backend, shape):
            rows.append(row)
            print(row, flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
