"""Triton's kernels with their dispatch remembered: a launch like an earlier one skips Triton.

Triton looks at every argument of every launch to choose a binary, which takes 20 to 40 us. The
choice depends on the numbers, and on whether pointers are aligned; here it is kept by just these,
and a launch that differs in any goes the long way once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from triton import knobs
from triton.runtime.jit import JITFunction

from attnc.autotune.launcher import Driver, Prepared, parameters

# launches remembered a kernel and thread; lengths that never repeat would fill memory
_MOST = 1024


class FastKernel:
    """A Triton kernel for a launcher to launch, its tensors of the same dtypes every time."""

    def __init__(
        self, kernel: JITFunction[Any], constants: Mapping[str, int], driver: Driver
    ) -> None:
        self._kernel, self._constants, self._driver = kernel, dict(constants), driver
        self._local = threading.local()

    def launch(
        self, grid: tuple[int, int, int], tensors: Sequence[Any], numbers: tuple[int, ...]
    ) -> None:
        """Queue one run on the current device's current stream."""
        pointers = [tensor.data_ptr() for tensor in tensors]
        alignment = 0
        for pointer in pointers:
            alignment |= pointer
        device = torch._C._cuda_getDevice()
        key = (device, numbers)
        try:
            prepared: Prepared | None = self._local.known.get(key)
        except AttributeError:
            self._local.known, prepared = {}, None
        # a profiler that listens to launches hears of those that go through Triton
        if alignment & 15 or self.listening():
            self._kernel[grid](*tensors, *numbers, **self._constants)
        elif prepared is not None:
            prepared.launch(grid, torch._C._cuda_getCurrentRawStream(device), pointers)
        else:
            compiled = self._kernel[grid](*tensors, *numbers, **self._constants)
            if len(self._local.known) >= _MOST:
                self._local.known.clear()
            self._local.known[key] = self._prepare(compiled, (*tensors, *numbers))

    def remembered(self, device: int, numbers: tuple[int, ...]) -> Prepared | None:
        """This thread's launch with these numbers and aligned pointers, if there was one."""
        known: Prepared | None = getattr(self._local, "known", {}).get((device, numbers))
        return known

    def listening(self) -> bool:
        """Whether a profiler hears of every launch of Triton's."""
        return bool(knobs.runtime.launch_enter_hook.calls)

    def _prepare(self, compiled: Any, arguments: tuple[Any, ...]) -> Prepared:
        """What a compiled kernel takes of these arguments: those that are no constants of it."""
        names = [p.name for p in self._kernel.params]
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


def kernels_of(module: ModuleType) -> dict[str, JITFunction[Any]]:
    """The kernels of an emitted module by name; its helpers, whose names begin with _, are none."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and not name.startswith("_")
    }
