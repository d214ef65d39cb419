"""A repair of Triton's interpreter, which computes with the raw bits of bfloat16.

The interpreter keeps a bfloat16 as its sixteen bits in a uint16 and lets numpy add, multiply and
`tl.dot` those integers; its cast from float32 truncates. Here every operation on such operands
widens them to float32, computes, and rounds the result to nearest even, as torch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

_QUIET_NAN = np.uint16(0x7FC0)
_OPERATIONS = {
    "binary_op": 2,
    "unary_op": 1,
    "ternary_op": 3,
    "create_fma": 3,
    "create_erf": 1,
    "create_rsqrt": 1,
    "create_dot": 3,
}


def widen_bits(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 bits; exact."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def round_to_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each float32, ties to even; every NaN becomes quiet."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    # half a unit in the last place, less one where the kept part is even: the carry is the rounding
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), _QUIET_NAN, rounded)


def truncate_to_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The bits of each float32 rounded towards zero; every NaN becomes quiet."""
    values = np.asarray(values, dtype=np.float32)
    kept = (values.view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), _QUIET_NAN, kept)


def install() -> None:
    """Repair the interpreter of this process, once."""
    if getattr(InterpreterBuilder, "_attnc_bfloat16", False):
        return
    InterpreterBuilder._attnc_bfloat16 = True
    for name, operands in _OPERATIONS.items():
        _widen_operation(name, operands)
    _repair_casts()
    _widen_reductions()
    if not hasattr(InterpreterBuilder, "get_bf16"):
        InterpreterBuilder.get_bf16 = _constant


def _is_bfloat16(handle: Any) -> bool:
    # a comparison's result keeps its operands' type, but holds booleans
    return bool(handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16)


def _widen(handle: Any) -> Any:
    if not _is_bfloat16(handle):
        return handle
    return TensorHandle(widen_bits(handle.data), tl.float32)


def _narrow(handle: Any) -> Any:
    if handle.data.dtype == np.bool_:
        return handle
    return TensorHandle(round_to_bits(handle.data), tl.bfloat16)


def _widen_operation(name: str, operands: int) -> None:
    """Replace a builder's method: widen its first operands, compute, round as the last had it."""
    original: Callable[..., Any] = getattr(InterpreterBuilder, name)

    def operation(self: Any, *arguments: Any) -> Any:
        handles, rest = arguments[:operands], arguments[operands:]
        # a select moves bits and computes nothing
        if rest[:1] == (np.where,) or not any(map(_is_bfloat16, handles)):
            return original(self, *arguments)
        result = original(self, *map(_widen, handles), *rest)
        return _narrow(result) if _is_bfloat16(handles[-1]) else result

    setattr(InterpreterBuilder, name, operation)


def _repair_casts() -> None:
    original_cast = InterpreterBuilder.cast_impl
    original_convert = InterpreterBuilder.create_fp_to_fp

    def cast(self: Any, source: Any, target: Any) -> Any:
        if _is_bfloat16(source):
            if target.scalar == tl.bfloat16:
                return source
            source = _widen(source)
            return source if target.scalar == tl.float32 else original_cast(self, source, target)
        if target.scalar == tl.bfloat16:
            # through float32 from every type, as torch does
            return TensorHandle(round_to_bits(source.data.astype(np.float32)), tl.bfloat16)
        return original_cast(self, source, target)

    def convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar in (tl.float32, tl.float64):
            toward_zero = rounding == ir.ROUNDING_MODE.RTZ
            to_bits = truncate_to_bits if toward_zero else round_to_bits
            return TensorHandle(to_bits(source.data), tl.bfloat16)
        if target.scalar == tl.bfloat16 and source.dtype.primitive_bitwidth == 8:
            wide = original_convert(self, source, tl.float32, rounding)
            return TensorHandle(round_to_bits(wide.data), tl.bfloat16)
        if _is_bfloat16(source) and target.scalar.primitive_bitwidth == 8:
            return original_convert(self, _widen(source), target, rounding)
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast(self, source, target)
        return original_convert(self, source, target, rounding)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = convert


def _widen_reductions() -> None:
    """Let the reductions that numpy does at once work on float32; rounded once, at the end."""
    for owner, names in ((ReduceOps, ("sum", "min_max")), (ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            _widen_reduction(owner, name)


def _widen_reduction(owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def reduction(self: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        # min and max with an index come as a pair; only the values are compared
        value = value[0] if isinstance(value, tuple) else value
        if not _is_bfloat16(value.handle):
            return original(self, value, *arguments, **options)
        result = original(self, _as_float32(value), *arguments, **options)
        if isinstance(result, (tuple, list)):
            return type(result)(map(_as_bfloat16, result))
        return _as_bfloat16(result)

    setattr(owner, name, reduction)


def _as_float32(value: Any) -> Any:
    return tl.core.tensor(_widen(value.handle), _with_element(value.type, tl.float32))


def _as_bfloat16(value: Any) -> Any:
    if value.dtype != tl.float32:
        return value
    return tl.core.tensor(_narrow(value.handle), _with_element(value.type, tl.bfloat16))


def _with_element(kind: Any, element: Any) -> Any:
    return tl.block_type(element, list(kind.shape)) if kind.is_block() else element


def _constant(self: Any, value: float) -> Any:
    return TensorHandle(round_to_bits(np.array([value], dtype=np.float32)), tl.bfloat16)
