"""Taps [C, taps] as a convolution's kernels take them: smoothed, squashed, dropped, in order.

They are few beside the tokens, so torch's own functions do it, and autograd their gradients.
Copied as it is into wheels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool1d, dropout, softshrink

if TYPE_CHECKING:
    from attnc.dsl.convolution import Convolution


def transformed(variant: Convolution, taps: torch.Tensor, *, training: bool) -> torch.Tensor:
    """The taps after the declared transforms, in fp32 at least; dropout where `training`."""
    if not variant.filter.transforms:
        return taps
    found = taps if taps.dtype == torch.float64 else taps.float()
    for transform in variant.filter.transforms:
        if transform.name == "smooth":
            width = int(transform.value)
            # padding counts: beyond the filter are taps of 0
            found = avg_pool1d(found[:, None], width, 1, width // 2)[:, 0]
        elif transform.name == "squash":
            found = softshrink(found, transform.value)
        else:
            found = dropout(found, transform.value, training)
    return found
