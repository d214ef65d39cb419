"""The process that times candidates: `python -m attnc.autotune.measure_worker DEVICE`.

`load` names a file of arguments, expected outputs and how far each may be from them. A candidate
that crashes, hangs or poisons the CUDA context takes this process with it and nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnc.autotune.worker_channel import WorkerChannel

# several times any L2; writing it takes longer than the host needs to launch a backward's passes
_FLUSHED_BYTES = 1 << 30


def main() -> None:
    """Take the pipes, wake the device, and answer."""
    device = sys.argv[1]
    channel = WorkerChannel.take_over()
    if device == "cpu":
        # triton reads it once, on import
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if device == "cpu":
        from attnc.autotune import bfloat16, float8, interpreter_repairs

        torch.set_num_threads(1)
        float8.install()
        bfloat16.install()
        interpreter_repairs.repair_index()
        interpreter_repairs.know_tanh()
        interpreter_repairs.poison_empty()
    else:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    torch.set_grad_enabled(False)
    channel.serve(_Timer(device).answer)


class _Timer:
    def __init__(self, device: str) -> None:
        self._device = device
        self._arguments: list[Any] = []
        self._expected: list[Any] = []
        self._bounds: list[float] = []
        self._runs: dict[tuple[str, str], Callable[..., Any]] = {}
        self._flush: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`load` takes inputs; `sample` checks a candidate and times it."""
        try:
            if request["ask"] == "load":
                return self._load(request["inputs"])
            run = self._run_of(request)
            return self._sample(run, request["repeats"])
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}

    def _load(self, path: str) -> dict[str, Any]:
        import torch

        facts = torch.load(path, map_location=self._device)
        self._arguments, self._expected = facts["arguments"], facts["expected"]
        self._bounds = facts["bounds"]
        return {}

    def _run_of(self, request: dict[str, Any]) -> Callable[..., Any]:
        key = request["path"], request["function"]
        if key not in self._runs:
            self._runs[key] = self._find(request)
        return self._runs[key]

    def _find(self, request: dict[str, Any]) -> Callable[..., Any]:
        from attnc.autotune.module_cache import load_module, read_verified

        path = Path(request["path"])
        if not request["kernels"]:
            run: Callable[..., Any] = getattr(load_module(path), request["function"])
            return run
        from attnc.autotune.binary_kernel import BinaryKernel, load_launcher
        from attnc.autotune.launcher import Driver

        driver = Driver()
        kernels = {
            entry["kernel"]: BinaryKernel(
                entry, None, lambda e: Path(e["file"]).read_bytes(), driver
            )
            for entry in request["kernels"]
        }
        space = load_launcher(read_verified(path), str(path), "attnc.autotune", kernels)
        found: Callable[..., Any] = space[request["function"]]
        return found

    def _sample(self, run: Callable[..., Any], repeats: int) -> dict[str, Any]:
        outputs = run(*self._arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for number, (out, expected, bound) in enumerate(
            zip(outputs, self._expected, self._bounds, strict=True)
        ):
            apart = float((out.double() - expected.double()).abs().max())
            if not apart <= bound:
                far = f"{apart:.4g} from the reference, {bound:.4g} is allowed"
                return {"wrong": f"output {number} is {far}"}
        return {"ms": [self._time(run) for _ in range(repeats)]}

    def _time(self, run: Callable[..., Any]) -> float:
        if self._device == "cpu":
            start = time.perf_counter()
            run(*self._arguments)
            return (time.perf_counter() - start) * 1e3
        import torch

        # evicts the caches, and keeps the device busy until the launches are queued
        if self._flush is None:
            self._flush = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device="cuda")
        self._flush.zero_()
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        run(*self._arguments)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


if __name__ == "__main__":
    main()
