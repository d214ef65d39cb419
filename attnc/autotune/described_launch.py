"""Launches whose tensors go as descriptors: 128 bytes by value each, then its sizes and strides.

All but the addresses is encoded once; a launch replaces these in place.
Source: the CUDA driver API, cuTensorMapEncodeTiled and cuTensorMapReplaceAddress.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnc.autotune.launcher import Driver, Image, Prepared

# CUtensorMap of cuda.h, and where one has to begin
_MAP_BYTES, _MAP_ALIGNED = 128, 64
# CUtensorMapDataType and CUtensorMapL2promotion, as Triton's launcher has them
_TYPES = {"fp16": 6, "fp32": 7, "bf16": 9}
_ITEMS = {"fp16": 2, "fp32": 4, "bf16": 2}
_NO_INTERLEAVE, _PROMOTE_128, _FILL_ZERO = 0, 2, 0


@dataclass(frozen=True, slots=True)
class Box:
    """A tensor as the copy engine takes it, outermost axis first.

    Units: `shape` and `strides` in elements. `tile` is what one copy moves: the compiler cuts a
    tile of the kernel's into copies no wider than the swizzle, and names both. `swizzle` is a
    CUtensorMapSwizzle, `address` that of the first launch.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    tile: tuple[int, ...]
    swizzle: int
    dtype: str
    address: int


class PreparedBoxes(Prepared):
    """One kernel with all its numbers packed, some of its tensors as descriptors.

    `kinds` are its arguments in order: `box`, a pointer (`*fp32`), or a number's type; `boxes` and
    `values` are those of boxes and numbers. A launch takes the addresses of all tensors in order.
    """

    def __init__(
        self,
        driver: Driver,
        function: int,
        kinds: Sequence[str],
        boxes: Sequence[Box],
        values: Sequence[float],
        *,
        threads: int,
        shared_bytes: int,
        hidden: int,
    ) -> None:
        pointers = [kind for kind in kinds if kind.startswith("*")]
        numbers = [kind for kind in kinds if kind != "box" and not kind.startswith("*")]
        super().__init__(
            driver, function, [*pointers, *numbers], values, threads=threads,
            shared_bytes=shared_bytes, hidden=hidden,
        )  # fmt: skip
        self._maps = ctypes.create_string_buffer(_MAP_BYTES * len(boxes) + _MAP_ALIGNED)
        first = -(-ctypes.addressof(self._maps) // _MAP_ALIGNED) * _MAP_ALIGNED
        starts = [first + _MAP_BYTES * n for n in range(len(boxes))]
        self._sizes = [_sizes(box) for box in boxes]
        words = iter(self.words)
        of_pointers = [next(words) for _ in pointers]
        of_numbers = [next(words) for _ in numbers]
        of_boxes = zip(starts, self._sizes, strict=True)
        order: list[int] = []
        for kind in kinds:
            if kind == "box":
                start, sizes = next(of_boxes)
                order += [start, *_addresses(*sizes)]
            else:
                order.append((of_pointers if kind.startswith("*") else of_numbers).pop(0))
        self.arrange([*order, *words])
        tensors = [kind for kind in kinds if kind == "box" or kind.startswith("*")]
        self._boxed = [n for n, kind in enumerate(tensors) if kind == "box"]
        self._plain = [n for n, kind in enumerate(tensors) if kind != "box"]
        encode = driver.function("cuTensorMapEncodeTiled", *_ENCODED)
        for start, box in zip(starts, boxes, strict=True):
            driver.check(_encode(encode, start, box), "encode a descriptor")
        self._replace = driver.function(
            "cuTensorMapReplaceAddress", ctypes.c_void_p, ctypes.c_void_p
        )
        self._starts, self._kinds = starts, tuple(kinds)

    def image(self) -> Image:
        """The arguments as bytes: descriptors first, then everything else in words."""
        bare = super().image()
        packed = bytearray(b"".join(ctypes.string_at(at, _MAP_BYTES) for at in self._starts))
        offsets: list[int] = []
        tensors: list[int] = []

        def put(data: bytes) -> int:
            offsets.append(len(packed))
            packed.extend(data.ljust(8, b"\0"))
            return offsets[-1]

        boxes = iter(enumerate(self._sizes))
        words = [bare.packed[at : at + 8] for at in bare.offsets]
        pointers, others = iter(words[: len(bare.tensors)]), iter(words[len(bare.tensors) :])
        for kind in self._kinds:
            if kind == "box":
                box, arrays = next(boxes)
                tensors.append(box * _MAP_BYTES)
                offsets.append(box * _MAP_BYTES)
                for number in (bytes(array._type_(n)) for array in arrays for n in array):
                    put(number)
            elif kind.startswith("*"):
                tensors.append(put(next(pointers)))
            else:
                put(next(others))
        for word in others:
            put(word)
        boxed = tuple(int(n in self._boxed) for n in range(len(tensors)))
        return Image(bytes(packed), tuple(offsets), tuple(tensors), boxed)

    def launch(self, grid: tuple[int, int, int], stream: int, pointers: Sequence[int]) -> None:
        """Queue one run of the kernel on a stream.

        Raises: LaunchError where the driver refuses.
        """
        given = pointers if self.kernel is not None else self._hand_over(pointers)
        super().launch(grid, stream, given)

    def on(self, grid: tuple[int, int, int]) -> tuple[Callable[..., None], Callable[[], int]]:
        """A launch over one grid in two calls, as of a kernel without descriptors."""
        write, run = super().on(grid)

        def hand_over(stream: int, *pointers: int) -> None:
            write(stream, *self._hand_over(pointers))

        return hand_over, run

    def _hand_over(self, pointers: Sequence[int]) -> list[int]:
        """Put addresses into the descriptors; those that go as pointers are left."""
        replace = self._replace
        for start, place in zip(self._starts, self._boxed, strict=True):
            self.check(replace(start, pointers[place]))
        return [pointers[place] for place in self._plain]


_ENCODED = (
    ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p,
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ctypes.c_int,
)  # fmt: skip


def _encode(encode: Callable[..., int], start: int, box: Box) -> int:
    """Write a descriptor."""
    rank = len(box.shape)
    shape = (ctypes.c_uint64 * rank)(*reversed(box.shape))
    item, outer = _ITEMS[box.dtype], box.strides[:-1]
    strides = (ctypes.c_uint64 * rank)(*(item * step for step in reversed(outer)))
    tile = (ctypes.c_uint32 * rank)(*reversed(box.tile))
    apart = (ctypes.c_uint32 * rank)(*[1] * rank)
    return encode(
        start, _TYPES[box.dtype], rank, box.address, shape, strides, tile, apart,
        _NO_INTERLEAVE, box.swizzle, _PROMOTE_128, _FILL_ZERO,
    )  # fmt: skip


def _sizes(box: Box) -> tuple[ctypes.Array[ctypes.c_int32], ctypes.Array[ctypes.c_int64]]:
    """What a kernel takes behind a descriptor: sizes as i32, strides as i64."""
    rank = len(box.shape)
    return (ctypes.c_int32 * rank)(*box.shape), (ctypes.c_int64 * rank)(*box.strides)


def _addresses(*arrays: ctypes.Array[ctypes.c_int32] | ctypes.Array[ctypes.c_int64]) -> list[int]:
    return [
        ctypes.addressof(array) + n * ctypes.sizeof(array._type_)
        for array in arrays
        for n in range(len(array))
    ]
