"""TMA: boxes of tensors that are copied into shared memory and out of it, in their own time.

Source: the PTX ISA 8.5, cp.async.bulk.tensor; the CUDA driver API, cuTensorMapEncodeTiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnc.autotune.gluon_interpreter.agents import current
from attnc.autotune.gluon_interpreter.barriers import Barrier, barrier_at
from attnc.autotune.gluon_interpreter.clock import Clock
from attnc.autotune.gluon_interpreter.elements import Array, Element, element_of
from attnc.autotune.gluon_interpreter.faults import GluonFault, kernel_line
from attnc.autotune.gluon_interpreter.memory import Storage, Storages
from attnc.autotune.gluon_interpreter.shared import Access, Shared

_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Box:
    """What one copy moves."""

    shape: tuple[int, ...]
    nbytes: int


class TensorDescriptor:
    """A tensor as the copy engine takes it, in boxes of `block_shape`.

    Raises: GluonFault where the engine could not read it.
    """

    def __init__(
        self,
        base: torch.Tensor,
        shape: Any,
        strides: Any,
        block_shape: list[int],
        layout: object,
        padding: str = "zero",
    ) -> None:
        self.base = base
        self.shape = tuple(map(int, shape))
        self.strides = tuple(map(int, strides))
        self.block_shape = tuple(block_shape)
        self.layout = layout
        self.dtype: Element = element_of(base.dtype)
        size = base.element_size()
        odd = [s * size % _ALIGNED for s in self.strides[:-1]]
        if self.strides[-1] != 1 or base.data_ptr() % _ALIGNED or any(odd):
            raise GluonFault(f"no descriptor of strides {self.strides}, {size} bytes an element")
        if any(side > 256 for side in self.block_shape):
            raise GluonFault(f"a box of {self.block_shape} passes 256 elements a side")

    @classmethod
    def from_tensor(
        cls, tensor: torch.Tensor, block_shape: list[int], layout: object, **options: Any
    ) -> TensorDescriptor:
        return cls(tensor, tensor.shape, tensor.stride(), block_shape, layout, **options)

    @property
    def block_type(self) -> Box:
        size = int(np.prod(self.block_shape))
        return Box(self.block_shape, size * self.dtype.bits // 8)


class Described:
    """A descriptor in a launch, where its tensor's storage is known."""

    def __init__(self, descriptor: TensorDescriptor, storages: Storages) -> None:
        self.descriptor = descriptor
        self.storage: Storage = storages.of(descriptor.base)
        self.dtype = descriptor.dtype
        self.layout = descriptor.layout
        self.block_type = descriptor.block_type
        self.block_shape = descriptor.block_shape

    def lanes(self, at: list[Any]) -> tuple[Array, Array]:
        """Which elements of the box lie in the tensor, and where in its storage."""
        own = self.descriptor
        if len(at) != len(own.shape):
            raise GluonFault(f"a box of {len(own.shape)} dimensions at {len(at)} coordinates")
        inside = np.ones((), dtype=bool)
        places = np.asarray(own.base.storage_offset(), dtype=np.int64)
        for begin, side, size, stride in zip(
            map(int, at), own.block_shape, own.shape, own.strides, strict=True
        ):
            lane = begin + np.arange(side, dtype=np.int64)
            inside = inside[..., None] & ((lane >= 0) & (lane < size))
            places = places[..., None] + lane * stride
        return inside, places


@dataclass(eq=False, slots=True)
class Load:
    """A box on its way into shared memory."""

    line: int
    into: Shared
    source: Described
    at: list[int]
    barrier: Barrier
    clock: Clock

    @property
    def what(self) -> str:
        return self.into.what

    def land(self) -> None:
        inside, places = self.source.lanes(self.at)
        # past the tensor's edges stands 0
        found = np.zeros(inside.shape, dtype=self.into.data.dtype)
        found[inside] = self.source.storage.read(places[inside])
        self.into.data[...] = found
        self.barrier.land(self.source.block_type.nbytes, self.clock)


@dataclass(eq=False, slots=True)
class Store:
    """A box on its way out: its bytes are read when they are waited for, as late as can be."""

    line: int
    source: Shared
    into: Described
    at: list[int]
    access: Access
    adds: bool

    def end(self, time: int) -> None:
        inside, places = self.into.lanes(self.at)
        values = self.source.data[inside]
        (self.into.storage.add if self.adds else self.into.storage.write)(places[inside], values)
        self.access.time = time


def async_load(
    descriptor: Described, coord: list[Any], barrier: Shared, result: Shared, pred: Any = True
) -> None:
    """Copy the box at `coord` into `result`; its bytes arrive at the barrier."""
    if not pred:
        return
    agent = current()
    agent.program.pause()
    _fits(descriptor, result)
    gate = barrier_at(barrier)
    begin, end = result.extent()
    # it has landed, for whoever has seen the barrier's present phase end
    access = Access(
        begin, end, True, gate.key, gate.phase + 1, f"a copy of {agent.name}", kernel_line()
    )
    result.allocation.enter(access, agent)
    result.data[...] = np.nan if result.dtype.floating else -1
    at = [int(c) for c in coord]
    load = Load(kernel_line(), result, descriptor, at, gate, Clock(agent.clock))
    agent.program.loads.append(load)


def async_store(descriptor: Described, coord: list[Any], src: Shared) -> None:
    """Copy `src` to the box at `coord`, without what lies past the tensor's edges."""
    _send(descriptor, coord, src, adds=False)


def async_atomic_add(descriptor: Described, coord: list[Any], src: Shared) -> None:
    """Add `src` to the box at `coord`; others may add to it at the same time."""
    _send(descriptor, coord, src, adds=True)


def store_wait(pendings: int, read_only: bool = True) -> None:
    """Go on once all but the last so many copies out of this warp group have been read."""
    agent = current()
    agent.program.pause()
    while len(agent.stores) > int(pendings):
        agent.stores.pop(0).end(agent.clock[agent.name])


def fence_async_shared(cluster: bool = False) -> None:
    """Let the copy engine and the tensor cores see what this warp group has written."""
    agent = current()
    for access in agent.unfenced:
        access.fenced, access.fenced_at = True, agent.clock[agent.name]
    agent.unfenced.clear()


def _send(descriptor: Described, coord: list[Any], src: Shared, *, adds: bool) -> None:
    agent = current()
    agent.program.pause()
    _fits(descriptor, src)
    access = src.read_later(agent, "a copy out")
    at = [int(c) for c in coord]
    agent.stores.append(Store(kernel_line(), src, descriptor, at, access, adds))


def _fits(descriptor: Described, place: Shared) -> None:
    if place.shape != descriptor.block_type.shape or place.dtype is not descriptor.dtype:
        raise GluonFault(
            f"a box of {list(descriptor.block_type.shape)} of {descriptor.dtype} does not fit "
            f"{place.what}, {list(place.shape)} of {place.dtype}"
        )
