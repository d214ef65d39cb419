"""Types of elements, how numpy holds them, and which one two of them meet in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attnc.autotune.bfloat16 import round_to_bits, widen_bits

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Element:
    """A type of Gluon's. numpy has no bfloat16: a float32 that was rounded to one holds it."""

    name: str
    held: str
    bits: int
    rank: int

    def __str__(self) -> str:
        return self.name

    @property
    def primitive_bitwidth(self) -> int:
        return self.bits

    @property
    def element_ty(self) -> Element:
        """What a pointer's type points to: pointers here have the type of what lies there."""
        return self

    @property
    def floating(self) -> bool:
        return self.name.startswith(("fp", "bf"))

    def hold(self, values: Array) -> Array:
        """The values as this type holds them, rounded to the nearest, ties to even."""
        if self is bfloat16:
            return widen_bits(round_to_bits(values))
        return np.asarray(values, dtype=self.held)


int1 = Element("int1", "bool", 1, 0)
int8 = Element("int8", "int8", 8, 1)
int16 = Element("int16", "int16", 16, 2)
int32 = Element("int32", "int32", 32, 3)
int64 = Element("int64", "int64", 64, 4)
float16 = Element("fp16", "float16", 16, 5)
bfloat16 = Element("bf16", "float32", 16, 6)
float32 = Element("fp32", "float32", 32, 7)
float64 = Element("fp64", "float64", 64, 8)

_OF_TORCH = {
    torch.bool: int1,
    torch.int8: int8,
    torch.int16: int16,
    torch.int32: int32,
    torch.int64: int64,
    torch.float16: float16,
    torch.bfloat16: bfloat16,
    torch.float32: float32,
    torch.float64: float64,
}


def element_of(dtype: torch.dtype) -> Element:
    """The element type of a torch tensor.

    Raises: KeyError for a dtype that no emitted kernel takes.
    """
    return _OF_TORCH[dtype]


def common(left: Element, right: Element) -> Element:
    """Where two tensors meet: the wider; of both 16-bit floats, float32."""
    if {left, right} == {float16, bfloat16}:
        return float32
    return left if left.rank >= right.rank else right


def common_with_number(element: Element, number: object) -> Element:
    """Where a tensor meets a number of Python's: the tensor's type, unless that has no such."""
    if isinstance(number, bool):
        return element
    if isinstance(number, int):
        return int32 if element is int1 else element
    return element if element.floating else float32
