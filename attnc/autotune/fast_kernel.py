"""Triton's kernels with their dispatch remembered: a launch like an earlier one skips Triton.

Triton looks at every argument of every launch to choose a binary, which takes 20 to 40 us. The
choice depends on the numbers, and on whether pointers are aligned; here it is kept by just these,
and a launch that differs in any goes the long way once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from triton import knobs
from triton.runtime.jit import JITFunction

from attnc.autotune.described_launch import Box, PreparedBoxes
from attnc.autotune.launcher import Driver, Prepared, parameters

# sizes and strides of a tensor that goes as a descriptor
_OF_A_BOX = 8
# the types of tensors that go so
_BOXED = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# launches remembered a kernel and thread; lengths that never repeat would fill memory
_MOST = 1024


class FastKernel:
    """A Triton kernel for a launcher to launch, its tensors of the same dtypes every time.

    `whole` are the places of numbers of which a constant of that name says that all are multiples
    of it; where some are not, it is 1.
    """

    def __init__(
        self,
        kernel: JITFunction[Any],
        constants: Mapping[str, int],
        driver: Driver,
        whole: tuple[str, Sequence[int]] = ("", ()),
    ) -> None:
        self._kernel, self._constants, self._driver = kernel, dict(constants), driver
        self._whole = whole
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
            self._run(grid, tensors, numbers)
        elif prepared is not None:
            prepared.launch(grid, torch._C._cuda_getCurrentRawStream(device), pointers)
        else:
            compiled = self._run(grid, tensors, numbers)
            if len(self._local.known) >= _MOST:
                self._local.known.clear()
            self._local.known[key] = self._prepare(compiled, tensors, numbers)

    def remembered(self, device: int, numbers: tuple[int, ...]) -> Prepared | None:
        """This thread's launch with these numbers and aligned pointers, if there was one."""
        known: Prepared | None = getattr(self._local, "known", {}).get((device, numbers))
        return known

    def listening(self) -> bool:
        """Whether a profiler hears of every launch of Triton's."""
        return bool(knobs.runtime.launch_enter_hook.calls)

    def _run(
        self, grid: tuple[int, int, int], tensors: Sequence[Any], numbers: tuple[int, ...]
    ) -> Any:
        """Launch by way of Triton; the compiled kernel."""
        name, places = self._whole
        constants = self._constants
        if places and any(numbers[place] % constants[name] for place in places):
            constants = {**constants, name: 1}
        return self._kernel[grid](*tensors, *numbers, **constants)

    def _prepare(self, compiled: Any, tensors: Sequence[Any], numbers: tuple[int, ...]) -> Prepared:
        """What a compiled kernel takes of these arguments: those that are no constants of it."""
        arguments = (*tensors, *numbers)
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


class DescribedKernel(FastKernel):
    """A kernel of the gluon backend: tensors with a box go as descriptors.

    `boxes` are rows and columns of a tensor's box, None for one that goes as a pointer, in order of
    its tensors; `tiled` makes Triton's descriptor of a tensor and its box. Numbers begin with the
    shape [B, T, H, D] and the strides of each tensor with a box.
    """

    def __init__(
        self,
        kernel: JITFunction[Any],
        options: Mapping[str, int],
        driver: Driver,
        boxes: Sequence[tuple[int, int] | None],
        tiled: Callable[..., Any],
    ) -> None:
        super().__init__(kernel, options, driver)
        self._boxes, self._tiled = tuple(boxes), tiled

    def _run(
        self, grid: tuple[int, int, int], tensors: Sequence[Any], numbers: tuple[int, ...]
    ) -> Any:
        # making a descriptor needs a context, and a thread that only queues launches has none
        self._driver.attach(torch._C._cuda_getDevice())
        described = [
            x if box is None else self._tiled(x, *box)
            for x, box in zip(tensors, self._boxes, strict=True)
        ]
        own = numbers[_OF_A_BOX * sum(box is not None for box in self._boxes) :]
        return self._kernel[grid](*described, *own, **self._constants)

    def _prepare(self, compiled: Any, tensors: Sequence[Any], numbers: tuple[int, ...]) -> Prepared:
        places = [x for x, box in zip(tensors, self._boxes, strict=True) if box is not None]
        own = numbers[_OF_A_BOX * len(places) :]
        names = [p.name for p in self._kernel.params]
        signature = compiled.src.signature
        kinds = ["box" if box is not None else signature[name]
                 for name, box in zip(names, self._boxes, strict=False)]  # fmt: skip
        taken = [
            (signature[name], x)
            for name, x in zip(names[len(tensors) :], own, strict=True)
            if signature[name] != "constexpr"
        ]
        # behind each descriptor come its sizes and strides
        count = len(tensors) + _OF_A_BOX * len(places) + len(taken)
        metadata = compiled.metadata
        return PreparedBoxes(
            self._driver,
            compiled.function,
            [*kinds, *(kind for kind, _ in taken)],
            [_box(x, copy) for x, copy in zip(places, metadata.tensordesc_meta, strict=True)],
            [x for _, x in taken],
            threads=metadata.num_warps * 32,
            shared_bytes=metadata.shared,
            hidden=parameters(compiled.asm["ptx"]) - count,
        )


def _box(tensor: torch.Tensor, copy: Mapping[str, Any]) -> Box:
    """A tensor [B, T, H, D] as [B, H, T, D], in the copies that the compiler made of its tile."""
    batch, tokens, heads, columns = tensor.shape
    of_batch, of_tokens, of_heads, of_columns = tensor.stride()
    dtype = _BOXED[tensor.dtype]
    return Box(
        (batch, heads, tokens, columns), (of_batch, of_heads, of_tokens, of_columns),
        tuple(copy["block_size"]), copy["swizzle"], dtype, tensor.data_ptr(),
    )  # fmt: skip


def kernels_of(module: ModuleType) -> dict[str, JITFunction[Any]]:
    """The kernels of an emitted module by name; its helpers, whose names begin with _, are none."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and not name.startswith("_")
    }
