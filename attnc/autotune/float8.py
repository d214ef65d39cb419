"""A repair of Triton's interpreter, whose conversions of e4m3 floats are not the hardware's.

It rounds halves up and loses the carry, has 480 for NaN, and does not saturate. Here a float8e4nv
is the byte that torch's float8_e4m3fn is: widened exactly, rounded to nearest even, at most 448.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_NAN, _LARGEST = np.uint8(0x7F), 448.0
_VALUES: npt.NDArray[np.float32] = (
    torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
)
# the magnitudes in order: 0x7F is NaN
_MAGNITUDES = _VALUES[:127].astype(np.float64)
_HALFWAY = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2


def widen_bytes(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The float32 values of e4m3 bytes; exact."""
    return _VALUES[data]


def round_to_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The byte of the nearest e4m3 number of each float, ties to even; 448 for what is larger."""
    wide = np.asarray(values, dtype=np.float64)
    size = np.minimum(np.abs(wide), _LARGEST)
    below = np.searchsorted(_HALFWAY, size, side="left")
    # `below` rounds a tie down, which is right where the number below is even
    tie = np.zeros(below.shape, dtype=bool)
    inner = below < len(_HALFWAY)
    tie[inner] = size[inner] == _HALFWAY[below[inner]]
    nearest = np.where(tie & (below % 2 == 1), below + 1, below).astype(np.uint8)
    signed = nearest | (np.signbit(wide).astype(np.uint8) << 7)
    return np.where(np.isnan(wide), _NAN, signed)


def install() -> None:
    """Repair the interpreter of this process, once, before its bfloat16 is repaired."""
    if getattr(InterpreterBuilder, "_attnc_float8", False):
        return
    InterpreterBuilder._attnc_float8 = True
    _repair_conversion()
    _repair_dot()


def _is_float8(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.float8e4nv)


def _widen(handle: Any) -> Any:
    return TensorHandle(widen_bytes(handle.data), tl.float32) if _is_float8(handle) else handle


def _repair_conversion() -> None:
    original: Callable[..., Any] = InterpreterBuilder.create_fp_to_fp

    def convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        to_float8 = target.scalar == tl.float8e4nv
        if _is_float8(source):
            if to_float8:
                return source
            wide = _widen(source)
            return wide if target.scalar == tl.float32 else self.cast_impl(wide, target)
        if to_float8 and source.dtype.scalar in (tl.float16, tl.float32, tl.float64):
            return TensorHandle(round_to_bytes(source.data), tl.float8e4nv)
        return original(self, source, target, rounding)

    InterpreterBuilder.create_fp_to_fp = convert


def _repair_dot() -> None:
    original: Callable[..., Any] = InterpreterBuilder.create_dot

    def dot(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return original(self, _widen(left), _widen(right), *rest)

    InterpreterBuilder.create_dot = dot
