"""What `gl` is to an emitted kernel: functions of tiles, and names of layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnc.autotune.gluon_interpreter import memory
from attnc.autotune.gluon_interpreter.agents import current
from attnc.autotune.gluon_interpreter.elements import (
    Array,
    Element,
    bfloat16,
    float16,
    float32,
    float64,
    int1,
    int8,
    int16,
    int32,
    int64,
)
from attnc.autotune.gluon_interpreter.shared import Shared, allocate
from attnc.autotune.gluon_interpreter.tiles import Tile, meet, scalar, tile_of
from attnc.autotune.interpreter_repairs import approximate_tanh

__all__ = [
    "BlockedLayout", "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout",
    "SliceLayout", "SwizzledSharedLayout", "abs", "allocate_shared_memory", "arange", "atomic_add",
    "bfloat16", "cast", "cdiv", "constexpr", "convert_layout", "exp", "exp2", "float16", "float32",
    "float64", "floor", "full", "inline_asm_elementwise", "int1", "int16", "int32", "int64",
    "int8", "load", "log", "log2", "max", "maximum", "min", "minimum", "num_programs", "program_id",
    "rsqrt", "sqrt", "static_range", "store", "sum", "warp_specialize", "where", "zeros",
    "zeros_like",
]  # fmt: skip

load, store, atomic_add = memory.load, memory.store, memory.atomic_add


class constexpr:
    """What is known when a kernel is compiled: the value itself here."""

    def __new__(cls, value: Any) -> Any:
        return value


class Layout:
    """A layout by what it was made of; `value` is itself, as of a constant."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        self.parts = (parts, named)

    @property
    def value(self) -> Layout:
        return self


# the compiler tells them apart
BlockedLayout = DotOperandLayout = NVMMADistributedLayout = Layout
NVMMASharedLayout = SliceLayout = SwizzledSharedLayout = Layout


@dataclass(frozen=True, slots=True)
class _Known:
    """An instruction that is known by its text's beginning."""

    begins: str
    compute: Callable[[Array], Array]


_INSTRUCTIONS = (_Known("tanh.approx.f32", approximate_tanh),)


def program_id(axis: int) -> Tile:
    """The program's place on an axis of the grid."""
    return scalar(current().program.place[axis])


def num_programs(axis: int) -> Tile:
    """Programs on an axis of the grid."""
    return scalar(current().program.grid[axis])


def allocate_shared_memory(element: Element, shape: list[int], layout: object) -> Shared:
    """A buffer of the program's."""
    return allocate(element, shape)


def warp_specialize(
    functions_and_args: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    worker_num_warps: Sequence[int],
    worker_num_regs: Sequence[int] | None = None,
) -> None:
    """Run the functions side by side, a partition of warps each; the first has the kernel's own."""
    assert len(worker_num_warps) == len(functions_and_args) - 1, "the first has the kernel's warps"
    current().program.specialize(functions_and_args)


def arange(start: int, end: int, layout: object = None) -> Tile:
    """start, start + 1 .. end - 1."""
    return Tile(np.arange(start, end, dtype=np.int32), int32)


def full(shape: list[int], value: Any, dtype: Element, layout: object = None) -> Tile:
    """A tile of one value."""
    return Tile(np.broadcast_to(tile_of(value, dtype).to(dtype).data, shape).copy(), dtype)


def zeros(shape: list[int], dtype: Element, layout: object = None) -> Tile:
    """A tile of zeros."""
    return Tile(np.zeros(shape, dtype=dtype.held), dtype)


def zeros_like(value: Tile) -> Tile:
    """Zeros of a tile's shape and type."""
    return Tile(np.zeros_like(value.data), value.dtype)


def cast(value: Any, dtype: Element) -> Tile:
    """The value as another type holds it."""
    return tile_of(value).to(dtype)


def convert_layout(value: Tile, layout: object, assert_trivial: bool = False) -> Tile:
    """The same values, held otherwise."""
    return Tile(value.data, value.dtype)


def cdiv(value: Any, by: Any) -> Any:
    """The quotient, rounded up."""
    return (value + by - 1) // by


def where(condition: Any, one: Any, other: Any) -> Tile:
    """One where the condition holds, the other elsewhere."""
    if not isinstance(one, Tile) and not isinstance(other, Tile):
        one = tile_of(one)
    left, right, element = meet(one, other)
    return Tile(np.where(tile_of(condition).data, left, right), element)


def maximum(one: Any, other: Any) -> Any:
    """The larger; a number, where the other is NaN."""
    return _chosen(np.fmax, one, other)


def minimum(one: Any, other: Any) -> Any:
    """The smaller; a number, where the other is NaN."""
    return _chosen(np.fmin, one, other)


def max(value: Tile, axis: int | None = None) -> Tile:
    """The largest along an axis; like the card's, it passes over NaN."""
    return Tile(np.asarray(np.fmax.reduce(value.data, axis=axis)), value.dtype)


def min(value: Tile, axis: int | None = None) -> Tile:
    """The smallest along an axis; it passes over NaN."""
    return Tile(np.asarray(np.fmin.reduce(value.data, axis=axis)), value.dtype)


def sum(value: Tile, axis: int | None = None) -> Tile:
    """The sum along an axis."""
    element = int32 if value.dtype is int1 else value.dtype
    return Tile(element.hold(np.asarray(np.sum(value.data, axis=axis))), element)


def exp(value: Tile) -> Tile:
    """e ** value."""
    return _mapped(np.exp, value)


def exp2(value: Tile) -> Tile:
    """2 ** value."""
    return _mapped(np.exp2, value)


def log(value: Tile) -> Tile:
    """The natural logarithm."""
    return _mapped(np.log, value)


def log2(value: Tile) -> Tile:
    """The logarithm to base 2."""
    return _mapped(np.log2, value)


def sqrt(value: Tile) -> Tile:
    """The square root."""
    return _mapped(np.sqrt, value)


def rsqrt(value: Tile) -> Tile:
    """1 over the square root."""
    return _mapped(lambda data: 1 / np.sqrt(data), value)


def abs(value: Tile) -> Tile:
    """The magnitude."""
    return _mapped(np.abs, value)


def floor(value: Tile) -> Tile:
    """The largest whole number that is no larger."""
    return _mapped(np.floor, value)


def static_range(*bounds: int) -> Any:
    """A loop that the compiler unrolls."""
    return range(*bounds)


def inline_asm_elementwise(
    asm: str, constraints: str, args: list[Tile], dtype: Element, is_pure: bool, pack: int
) -> Tile:
    """One of the instructions that are known here.

    Raises: NotImplementedError for another.
    """
    known = next((item for item in _INSTRUCTIONS if asm.startswith(item.begins)), None)
    if known is None:
        raise NotImplementedError(f"the interpreter does not know {asm!r}")
    return Tile(dtype.hold(known.compute(args[0].data)), dtype)


def _mapped(function: Callable[[Array], Array], value: Any) -> Tile:
    tile = tile_of(value)
    return Tile(tile.dtype.hold(np.asarray(function(tile.data))), tile.dtype)


def _chosen(function: Callable[..., Array], one: Any, other: Any) -> Any:
    if not isinstance(one, Tile) and not isinstance(other, Tile):
        return int(function(one, other)) if isinstance(one, int) else function(one, other)
    left, right, element = meet(one, other)
    return Tile(np.asarray(function(left, right), dtype=element.held), element)
