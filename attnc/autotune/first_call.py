"""The first call of a module on a GPU: its kernels compile side by side, not one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any


class _Recorder:
    """Stands in for a kernel and remembers how it would have been launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append((grid, args, kwargs))

        return launch


def compile_passes(
    module: ModuleType, function: str, arguments: Sequence[Any], device: Any
) -> list[Any]:
    """Compile every kernel that a launcher of the module launches on these arguments, in threads.

    Returns the compiled kernels, with their figures.

    The launcher runs once with its kernels replaced, so that it allocates and computes grids and
    nothing else; Triton releases the interpreter lock while LLVM and ptxas work.
    """
    import torch

    from attnc.autotune.fast_kernel import kernels_of

    kernels = kernels_of(module)
    recorders = {name: _Recorder(kernel) for name, kernel in kernels.items()}
    try:
        vars(module).update(recorders)
        with torch.cuda.device(device):
            getattr(module, function)(*arguments)
    finally:
        vars(module).update(kernels)

    def build(recorder: _Recorder) -> list[Any]:
        with torch.cuda.device(device):
            built = [
                recorder.kernel.warmup(*args, grid=grid, **kwargs)
                for grid, args, kwargs in recorder.launches
            ]
            for kernel in built:
                kernel._init_handles()  # the driver says what spills, and whether it fits
            return built

    with ThreadPoolExecutor(max(1, len(recorders))) as pool:
        return [kernel for built in pool.map(build, recorders.values()) for kernel in built]
