"""Tiles in registers, and scalars: numpy arrays that know their element type.

Layouts are the compiler's: it holds every operation's against its operands', and does so with no
GPU. Here they are names, and a tile has its shape alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from attnc.autotune.gluon_interpreter.elements import (
    Array,
    Element,
    common,
    common_with_number,
    float32,
    int1,
    int32,
    int64,
)
from attnc.autotune.gluon_interpreter.faults import GluonFault

if TYPE_CHECKING:
    from attnc.autotune.gluon_interpreter.products import Product


class Tile:
    """Values of one element type; of no dimension, a scalar.

    A tile that an unfinished product owns has no values until a wait hands over another.
    """

    __slots__ = ("_data", "dtype", "product", "shape")

    def __init__(self, data: Array, dtype: Element, product: Product | None = None) -> None:
        self._data = data
        self.dtype = dtype
        self.product = product
        self.shape = data.shape

    @property
    def data(self) -> Array:
        if self.product is not None:
            raise GluonFault(
                f"a product asked for at line {self.product.line} is read before a wait "
                "handed it over"
            )
        return self._data

    @property
    def type(self) -> Tile:
        return self

    def to(self, dtype: Element) -> Tile:
        data = self.data
        if dtype.floating or not self.dtype.floating:
            return Tile(dtype.hold(data), dtype)
        return Tile(np.trunc(data).astype(dtype.held), dtype)

    def reshape(self, shape: list[int]) -> Tile:
        return Tile(self.data.reshape(shape), self.dtype)

    def __getitem__(self, key: Any) -> Tile:
        return Tile(self.data[key], self.dtype)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __index__(self) -> int:
        return int(self.data.item())

    def __add__(self, other: Any) -> Any:
        return _both(self, other, operator.add)

    def __radd__(self, other: Any) -> Any:
        return _both(other, self, operator.add)

    def __sub__(self, other: Any) -> Any:
        return _both(self, other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return _both(other, self, operator.sub)

    def __mul__(self, other: Any) -> Any:
        return _both(self, other, operator.mul)

    def __rmul__(self, other: Any) -> Any:
        return _both(other, self, operator.mul)

    def __truediv__(self, other: Any) -> Any:
        return _both(self, other, operator.truediv, least=float32)

    def __rtruediv__(self, other: Any) -> Any:
        return _both(other, self, operator.truediv, least=float32)

    def __floordiv__(self, other: Any) -> Any:
        return _both(self, other, _quotient)

    def __rfloordiv__(self, other: Any) -> Any:
        return _both(other, self, _quotient)

    def __mod__(self, other: Any) -> Any:
        return _both(self, other, np.fmod)

    def __rmod__(self, other: Any) -> Any:
        return _both(other, self, np.fmod)

    def __and__(self, other: Any) -> Any:
        return _both(self, other, operator.and_)

    def __or__(self, other: Any) -> Any:
        return _both(self, other, operator.or_)

    def __xor__(self, other: Any) -> Any:
        return _both(self, other, operator.xor)

    def __rshift__(self, other: Any) -> Any:
        return _both(self, other, operator.rshift)

    def __lshift__(self, other: Any) -> Any:
        return _both(self, other, operator.lshift)

    def __invert__(self) -> Tile:
        return Tile(~self.data, self.dtype)

    def __neg__(self) -> Tile:
        return Tile(-self.data, self.dtype)

    def __lt__(self, other: Any) -> Tile:
        return _compared(self, other, operator.lt)

    def __le__(self, other: Any) -> Tile:
        return _compared(self, other, operator.le)

    def __gt__(self, other: Any) -> Tile:
        return _compared(self, other, operator.gt)

    def __ge__(self, other: Any) -> Tile:
        return _compared(self, other, operator.ge)

    def __eq__(self, other: object) -> Any:
        return _compared(self, other, operator.eq)

    def __ne__(self, other: object) -> Any:
        return _compared(self, other, operator.ne)

    __hash__ = None  # type: ignore[assignment]


def scalar(number: int) -> Tile:
    """A number that a kernel counts with: 32 bits, and 64 where those do not hold it."""
    element = int32 if -(2**31) <= number < 2**31 else int64
    return Tile(np.asarray(number, dtype=element.held), element)


def tile_of(value: Any, like: Element | None = None) -> Tile:
    """A tile as it is; of a number, one of no dimension."""
    if isinstance(value, Tile):
        return value
    if isinstance(value, bool | np.bool_):
        return Tile(np.asarray(value), int1)
    if isinstance(value, int):
        return scalar(value)
    element = like if like is not None and like.floating else float32
    return Tile(element.hold(np.asarray(value)), element)


def meet(left: Any, right: Any) -> tuple[Array, Array, Element]:
    """Two operands in their common type, widened to what computes them."""
    if isinstance(left, Tile) and isinstance(right, Tile):
        element = common(left.dtype, right.dtype)
        return _held(left, element), _held(right, element), element
    if isinstance(left, Tile):
        element = common_with_number(left.dtype, right)
        return _held(left, element), element.hold(np.asarray(right)), element
    element = common_with_number(right.dtype, left)
    return element.hold(np.asarray(left)), _held(right, element), element


def counted(*bounds: Any) -> Iterator[Tile]:
    """`range` in a kernel: what it counts is a scalar of 32 bits, which has `.to`."""
    return map(scalar, range(*(int(operator.index(bound)) for bound in bounds)))


def _held(tile: Tile, element: Element) -> Array:
    return tile.data if tile.dtype is element else element.hold(tile.data)


def _quotient(left: Array, right: Array) -> Array:
    """Integers are divided towards zero, as the card does."""
    found = np.floor_divide(left, right)
    return np.asarray(found + ((found < 0) & (found * right != left)))


def _both(
    left: Any, right: Any, function: Callable[..., Array], least: Element | None = None
) -> Any:
    if not all(isinstance(side, Tile | int | float | np.number) for side in (left, right)):
        return NotImplemented
    one, other, element = meet(left, right)
    if least is not None and not element.floating:
        element = least
        one, other = element.hold(one), element.hold(other)
    return Tile(element.hold(np.asarray(function(one, other))), element)


def _compared(left: Tile, right: Any, function: Callable[..., Array]) -> Tile:
    one, other, _ = meet(left, right)
    return Tile(np.asarray(function(one, other)), int1)
