"""Global memory: pointers into tensors of torch's, within their bounds, one writer an element.

Programs may add to an element atomically, any number of them; what is added to in a launch is
neither read nor written plainly in it, for no order of the two is promised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attnc.autotune.bfloat16 import round_to_bits, widen_bits
from attnc.autotune.gluon_interpreter.elements import Array, Element, bfloat16, element_of
from attnc.autotune.gluon_interpreter.faults import GluonFault
from attnc.autotune.gluon_interpreter.tiles import Tile, tile_of


@dataclass(eq=False, slots=True)
class Storage:
    """All elements of a tensor's storage, as bits that numpy can hold."""

    bits: Array
    element: Element
    written: Array = field(init=False)
    read_from: Array = field(init=False)
    added: Array = field(init=False)

    def __post_init__(self) -> None:
        self.written, self.read_from, self.added = np.zeros((3, *self.bits.shape), dtype=bool)

    def read(self, places: Array) -> Array:
        """Raises: GluonFault for an element that has been added to in this launch."""
        if self.added[places].any():
            raise GluonFault("an element of a tensor is read in a launch that adds to it")
        self.read_from[places] = True
        found = self.bits[places]
        return widen_bits(found) if self.element is bfloat16 else found

    def write(self, places: Array, values: Array) -> None:
        """Raises: GluonFault for an element that has been written or added to in this launch."""
        if self.added[places].any():
            raise GluonFault("an element of a tensor is written in a launch that adds to it")
        if len(np.unique(places)) < places.size or self.written[places].any():
            raise GluonFault("an element of a tensor is written twice in one launch")
        self.written[places] = True
        self.bits[places] = self._as_bits(values)

    def add(self, places: Array, values: Array) -> None:
        """Add atomically: any number of writers.

        Raises: GluonFault for an element that has been read or written in this launch.
        """
        for plainly, was in ((self.read_from, "read"), (self.written, "written")):
            if plainly[places].any():
                raise GluonFault(f"an element of a tensor is {was} in a launch that adds to it")
        self.added[places] = True
        sums = widen_bits(self.bits) if self.element is bfloat16 else self.bits
        np.add.at(sums, places, values)
        self.bits[places] = self._as_bits(sums[places])

    def _as_bits(self, values: Array) -> Array:
        return round_to_bits(values) if self.element is bfloat16 else values


class Storages:
    """Those of one launch: tensors that share one see each other's writes."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, torch.dtype], Storage] = {}

    def of(self, tensor: torch.Tensor) -> Storage:
        key = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        if key not in self._found:
            flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            bits = flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat
            self._found[key] = Storage(bits.numpy(), element_of(tensor.dtype))
        return self._found[key]


class Pointer:
    """Addresses in one storage, in elements; `dtype` is what lies there."""

    __slots__ = ("dtype", "places", "storage")

    def __init__(self, storage: Storage, places: Array) -> None:
        self.storage = storage
        self.places = places
        self.dtype = storage.element

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.storage, self.places + np.asarray(tile_of(other).data, np.int64))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Pointer:
        return Pointer(self.storage, self.places - np.asarray(tile_of(other).data, np.int64))

    def __getitem__(self, key: Any) -> Pointer:
        return Pointer(self.storage, self.places[key])

    def masked(self, mask: Any) -> tuple[Array, Array]:
        """Which lanes are taken, and where they point.

        Raises: GluonFault where one of them points outside of the tensor.
        """
        lanes = np.asarray(tile_of(mask).data if mask is not None else True)
        taken = np.broadcast_to(lanes, np.broadcast_shapes(self.places.shape, lanes.shape))
        places = np.broadcast_to(self.places, taken.shape)[taken]
        size = self.storage.bits.size
        outside = places[(places < 0) | (places >= size)]
        if outside.size:
            raise GluonFault(f"element {outside[0]} of a tensor's {size} is accessed")
        return taken, places


def load(pointer: Pointer, mask: Any = None, other: Any = None, **hints: object) -> Tile:
    """What pointers point to; where masked, `other`, and without one what no kernel may use."""
    taken, places = pointer.masked(mask)
    element = pointer.dtype
    missing = np.nan if element.floating else -1
    found = np.full(taken.shape, missing, dtype=element.held)
    if other is not None:
        found = np.broadcast_to(element.hold(tile_of(other).data), taken.shape).copy()
    found[taken] = pointer.storage.read(places)
    return Tile(found, element)


def store(pointer: Pointer, value: Any, mask: Any = None, **hints: object) -> None:
    """Write to what pointers point to, where not masked."""
    taken, places = pointer.masked(mask)
    values = tile_of(value, pointer.dtype).to(pointer.dtype).data
    pointer.storage.write(places, np.broadcast_to(values, taken.shape)[taken])


def atomic_add(pointer: Pointer, value: Any, mask: Any = None, **hints: object) -> None:
    """Add to what pointers point to, where not masked; in an order that nothing promises."""
    taken, places = pointer.masked(mask)
    values = tile_of(value, pointer.dtype).to(pointer.dtype).data
    pointer.storage.add(places, np.broadcast_to(values, taken.shape)[taken])
