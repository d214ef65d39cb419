"""Triton's kernels with their dispatch remembered: a launch like an earlier one skips Triton.

Triton looks at every argument of every launch to choose a binary, which takes 20 to 34 us. The
choice depends on the numbers, the dtypes and the alignment of pointers alone; here it is kept by
just these, and a launch that differs in any goes the long way once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from operator import attrgetter, methodcaller
from types import ModuleType
from typing import Any

import torch
from triton import knobs
from triton.runtime.jit import JITFunction

from attnc.autotune.launcher import Driver, Prepared, parameters

# launches remembered a kernel and thread; lengths that never repeat would fill memory
_MOST = 1024
_ALIGNED = 15
_pointer = methodcaller("data_ptr")
_dtype = attrgetter("dtype")


class FastKernel:
    """Launches as the kernel itself does: `kernel[grid](*tensors, *numbers, **constants)`."""

    def __init__(self, kernel: JITFunction[Any], driver: Driver) -> None:
        self.kernel = kernel
        self._driver = driver
        self._tensors = 0
        self._local = threading.local()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        if not self._tensors:
            self._tensors = sum(isinstance(x, torch.Tensor) for x in arguments)
        tensors = arguments[: self._tensors]
        device = torch._C._cuda_getDevice()
        pointers = [*map(_pointer, tensors)]
        key = (device, arguments[self._tensors :], *map(_dtype, tensors), *constants.values())
        try:
            prepared: Prepared | None = self._local.known.get(key)
        except AttributeError:
            self._local.known, prepared = {}, None
        alignment = 0
        for pointer in pointers:
            alignment |= pointer
        # a profiler that listens to launches hears of those that go through Triton
        if alignment & _ALIGNED or knobs.runtime.launch_enter_hook.calls:
            self.kernel[grid](*arguments, **constants)
        elif prepared is not None:
            prepared.launch((*grid, 1, 1)[:3], torch._C._cuda_getCurrentRawStream(device), pointers)
        else:
            compiled = self.kernel[grid](*arguments, **constants)
            if len(self._local.known) >= _MOST:
                self._local.known.clear()
            self._local.known[key] = self._prepare(compiled, arguments)

    def _prepare(self, compiled: Any, arguments: tuple[Any, ...]) -> Prepared:
        """What a compiled kernel takes of these arguments: those that are no constants of it."""
        names = [p.name for p in self.kernel.params]
        kinds = [compiled.src.signature[name] for name in names[: len(arguments)]]
        taken = [(k, x) for k, x in zip(kinds, arguments, strict=True) if k != "constexpr"]
        metadata = compiled.metadata
        return Prepared(
            self._driver,
            compiled.function,
            [kind for kind, _ in taken],
            [x for kind, x in taken if not kind.startswith("*")],
            threads=metadata.num_warps * 32,
            shared_bytes=metadata.shared,
            hidden=parameters(compiled.asm["ptx"]) - len(taken),
        )


def kernels_of(module: ModuleType) -> dict[str, JITFunction[Any] | FastKernel]:
    """The kernels of an emitted module by name; its helpers, whose names begin with _, are none."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, JITFunction | FastKernel) and not name.startswith("_")
    }


def quicken(module: ModuleType) -> None:
    """Replace the kernels of a loaded module by ones that remember their dispatch."""
    driver = Driver()
    for name, kernel in kernels_of(module).items():
        if isinstance(kernel, JITFunction):
            setattr(module, name, FastKernel(kernel, driver))
