"""The process that times candidates: `python -m attnc.autotune.measure_worker DEVICE INPUTS`.

INPUTS is a file of arguments, expected outputs and how far each may be from them. A candidate that
crashes, hangs or poisons the CUDA context takes this process with it and nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attnc.autotune.worker_channel import WorkerChannel

# several times any L2; writing it takes longer than the host needs to launch a backward's passes
_FLUSHED_BYTES = 1 << 30


def main() -> None:
    """Take the pipes, load the inputs, and answer."""
    device, inputs = sys.argv[1], Path(sys.argv[2])
    channel = WorkerChannel.take_over()
    if device == "cpu":
        # triton reads it once, on import
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if device == "cpu":
        from attnc.autotune import bfloat16, interpreter_repairs

        torch.set_num_threads(1)
        bfloat16.install()
        interpreter_repairs.repair_index()
        interpreter_repairs.poison_empty()
    torch.set_grad_enabled(False)
    channel.serve(_Timer(device, torch.load(inputs, map_location=device)).answer)


class _Timer:
    def __init__(self, device: str, facts: dict[str, Any]) -> None:
        self._device = device
        self._arguments: list[Any] = facts["arguments"]
        self._expected: list[Any] = facts["expected"]
        self._bounds: list[float] = facts["bounds"]
        self._flush: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`compile` prepares modules side by side; `sample` checks one and times it."""
        try:
            if request["ask"] == "compile":
                return {"figures": self._compile(request["paths"], request["function"])}
            return self._sample(request["path"], request["function"], request["repeats"])
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}

    def _compile(self, paths: list[str], function: str) -> list[dict[str, Any]]:
        if self._device == "cpu":
            return [{} for _ in paths]

        import torch

        from attnc.autotune.first_call import compile_passes
        from attnc.autotune.module_cache import load_module

        def one(path: str) -> dict[str, Any]:
            try:
                kernels = compile_passes(
                    load_module(Path(path)), function, self._arguments, torch.device("cuda")
                )
            except Exception as error:
                return {"error": f"{type(error).__name__}: {error}"[:300]}
            return {
                "shared": max((kernel.metadata.shared for kernel in kernels), default=0),
                "spills": sum(kernel.n_spills or 0 for kernel in kernels),
            }

        with ThreadPoolExecutor(min(8, len(paths))) as pool:
            return list(pool.map(one, paths))

    def _sample(self, path: str, function: str, repeats: int) -> dict[str, Any]:
        from attnc.autotune.module_cache import load_module

        run = getattr(load_module(Path(path)), function)
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

    def _time(self, run: Any) -> float:
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
