"""Strides of which the compiler is told what they are multiples of, so that rows are loaded wide.

Triton knows of a number that it is a multiple of 16, or nothing. Rows of 72 or of 40 channels begin
at multiples of 8 elements, hence at whole 16 bytes, those of 100 at whole 8 bytes, and untold it
loads them an element at a time. A kernel takes such strides over RU and times it again, which says
so; RU is 1 where a call's own strides are no multiples.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.plan import item_bytes

UNIT = "RU"
# what Triton asks of a number by itself
_TOLD = 16


def row_unit(dims: tuple[int, int], dtype: str) -> int:
    """RU: the elements, of 16 bytes at most, at multiples of which rows of head dims (K, V) begin.

    Of dims that are multiples of 16 nothing has to be told, and an odd one has nothing to tell.
    """
    most = 16 // item_bytes("io", dtype)
    units = [min(most, dim & -dim) for dim in dims if dim % _TOLD and not dim % 2]
    # fp64 is interpreted alone
    return min(units, default=1) if dtype != "fp64" else 1


def with_wide_rows(kernel: Kernel, dims: tuple[int, int], dtype: str) -> Kernel:
    """The kernel that takes strides over RU, where its head dims (K, V) ask for that."""
    if row_unit(dims, dtype) == 1:
        return kernel
    found = tuple(stride for tensor in kernel.tensors for stride in _told(tensor, dims))
    if not found:
        return kernel
    return replace(kernel, constants=(*kernel.constants, UNIT), whole_rows=found)


def whole_places(kernel: Kernel) -> tuple[int, ...]:
    """Where those strides stand among the numbers of a launch, which begin with all strides."""
    strides = [stride for tensor in kernel.tensors for stride in tensor.strides]
    return tuple(place for place, name in enumerate(strides) if name in kernel.whole_rows)


def _told(tensor: TensorArgument, dims: tuple[int, int]) -> tuple[str, ...]:
    """The strides of a tensor's rows that are multiples of RU and by themselves none of 16."""
    dim = {"k": dims[0], "v": dims[1]}.get(tensor.axes[-1] if tensor.axes else "", _TOLD)
    told = tensor.dtype == "io" and tensor.box is None and dim % _TOLD and not dim % 2
    return tensor.strides[:-1] if told else ()
