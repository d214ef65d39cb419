"""Random 8-bit tensors: the nearest of given ones, with a scale a head that is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.ops.scaled import E4M3

# the largest number of e4m3
_LARGEST = 448.0


def draw_scaled(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(bytes, scale) of x [B, T, H, D]: scales [H] differ, and leave up to two bits of the range.

    A kernel that took another head's scale would be off by as much as they differ.
    """
    largest = x.abs().amax((0, 1, 3)).clamp(min=1e-6)
    room = 1 + 3 * torch.rand(largest.shape, generator=generator)
    scale = largest * room / _LARGEST
    return (x / scale[:, None]).to(E4M3), scale
