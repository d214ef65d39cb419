"""Tensors as the copy engine takes them: what a launcher of descriptors asks of q, k and v.

Source: the CUDA driver API, cuTensorMapEncodeTiled: addresses and strides in multiples of 16 bytes,
adjacent elements in the innermost dimension, strides under 2**40 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from attnc.errors import InputError

_ALIGNED = 16


def undescribable(tensor: torch.Tensor) -> str:
    """Why the copy engine cannot read a tensor; empty where it can."""
    why = odd_layout(tensor)
    if not why and tensor.data_ptr() % _ALIGNED:
        return f"its address is no multiple of {_ALIGNED}"
    return why


def odd_layout(tensor: torch.Tensor) -> str:
    """Why it cannot, wherever the tensor begins; empty where it can."""
    *outer, inner = tensor.stride()
    size = tensor.element_size()
    if inner != 1:
        return f"its channels are {inner} elements apart, not adjacent"
    for axis, stride in enumerate(outer):
        if tensor.shape[axis] > 1 and stride == 0:
            return f"its axis {axis} is expanded: all of it is one row"
        if stride * size % _ALIGNED:
            return f"its axis {axis} steps by {stride * size} bytes, no multiple of {_ALIGNED}"
    return ""


def describable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that the copy engine can read: itself, or a copy of it."""
    return tensor.clone(memory_format=torch.contiguous_format) if undescribable(tensor) else tensor


def describing(
    run: Callable[..., Any], otherwise: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A launcher that makes descriptors of its first three tensors, behind a check of them.

    `otherwise` launches those that the copy engine cannot read.

    Raises:
        InputError: it cannot read q, k or v as they lie, and there is nothing otherwise.
    """

    @wraps(run)  # what a replay looks behind: it asks for aligned addresses itself
    def launch(*tensors: torch.Tensor) -> Any:
        for name, tensor in zip("qkv", tensors, strict=False):
            why = undescribable(tensor)
            if why and otherwise is not None:
                return otherwise(*tensors)
            if why:
                raise InputError(
                    f"the gluon backend cannot read {name}: {why}",
                    hints=(f"give {name}.contiguous(), or leave the backend out",),
                )
        return run(*tensors)

    return launch
