"""Tensors as kernels reach them: what lies too far apart is copied. Copied as it is into wheels.

A kernel counts in 64 bits to the first row of a tile, and in 32 bits from there: rows and channels
of a tile may be 2**31 elements apart. Those of nearly every layout are; where a whole batch lies
between two tokens, or between two channels, they may not be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_REACH = 2**31
# rows and channels of the largest tile
_TILE = 256
# tokens and channels of q, k, v and o
_OF_ROWS = (1, 3)


def far(x: torch.Tensor, axes: Sequence[int] = _OF_ROWS, span: int = _TILE) -> bool:
    """Whether `span` steps along one of the axes, or as many as it has, are out of reach."""
    return any((min(x.shape[axis], span) - 1) * x.stride(axis) >= _REACH for axis in axes)


def near(x: torch.Tensor, axes: Sequence[int] = _OF_ROWS, span: int = _TILE) -> torch.Tensor:
    """The tensor where kernels reach all of it, else a contiguous copy."""
    return x.contiguous() if far(x, axes, span) else x
