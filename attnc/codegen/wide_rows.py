"""Strides of which the compiler is told that rows begin at whole 16 bytes.

Triton knows of a number that it is a multiple of 16, or nothing. Rows of 72 or of 40 channels begin
at multiples of 8 elements, hence at whole 16 bytes, and untold it loads them an element at a time.
A kernel takes such strides over RU and times it again, which says so; RU is 1 where a call's own
strides are no multiples.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.plan import item_bytes

UNIT = "RU"
# what Triton asks of a number by itself
_TOLD = 16


def row_unit(dtype: str) -> int:
    """Elements of 16 bytes."""
    return 16 // item_bytes("io", dtype)


def with_wide_rows(kernel: Kernel, dims: tuple[int, int], dtype: str) -> Kernel:
    """The kernel that takes strides over RU, where its head dims (K, V) ask for that."""
    found = tuple(stride for x in kernel.tensors for stride in _told(x, dims, dtype))
    if not found:
        return kernel
    return replace(kernel, constants=(*kernel.constants, UNIT), whole_rows=found)


def whole_places(kernel: Kernel) -> tuple[int, ...]:
    """Where those strides stand among the numbers of a launch, which begin with all strides."""
    strides = [stride for tensor in kernel.tensors for stride in tensor.strides]
    return tuple(place for place, name in enumerate(strides) if name in kernel.whole_rows)


def _told(tensor: TensorArgument, dims: tuple[int, int], dtype: str) -> tuple[str, ...]:
    """The strides of a tensor's rows that are multiples of RU and by themselves none of 16."""
    dim = {"k": dims[0], "v": dims[1]}.get(tensor.axes[-1] if tensor.axes else "")
    # fp64 is interpreted alone
    if tensor.dtype != "io" or tensor.box is not None or dim is None or dtype == "fp64":
        return ()
    if dim % _TOLD == 0 or dim % row_unit(dtype):
        return ()
    return tensor.strides[:-1]
