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
) -> None:
    """Compile every kernel that a launcher of the module launches on these arguments, in threads.

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

    def build(recorder: _Recorder) -> None:
        with torch.cuda.device(device):
            for grid, args, kwargs in recorder.launches:
                kernel = recorder.kernel.warmup(*args, grid=grid, **kwargs)
                kernel._init_handles()  # the driver says whether it fits

    with ThreadPoolExecutor(max(1, len(recorders))) as pool:
        list(pool.map(build, recorders.values()))
