"""What a convolution with learned factors means, in eager torch.

    Z[k1, k2] = sum_n2 F2[k2, n2] exp(-2 pi i k1 n2 / N) sum_n1 F1[k1, n1] u[n1 * N2 + n2]
    z         = Re of the unitary inverse DFT of W[k1, k2] Z[k1, k2], at k = k1 + N1 * k2

W is the DFT of the taps, each at its offset modulo N. `rounding` rounds the operands of each stage.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnc.ops.reference.evaluate import round_to


def butterfly(
    u: Tensor, taps: Tensor, low: int, outer: Tensor, inner: Tensor, rounding: torch.dtype | None
) -> Tensor:
    """z [B, T, C] of u [B, T, C], taps [C, taps] from the offset `low` on, and both factors."""
    n1, half = outer.shape[1:]
    n2 = inner.shape[1]
    points, tokens = n1 * n2, u.shape[1]

    def rounded(x: Tensor) -> Tensor:
        return torch.view_as_complex(round_to(torch.view_as_real(x).contiguous(), rounding))

    first = rounded(torch.complex(outer[0], outer[1]))
    second = rounded(torch.complex(inner[0], inner[1]))
    x = pad(u.transpose(1, 2), (0, half * n2 - tokens)).view(u.shape[0], u.shape[2], half, n2)
    turns = torch.outer(torch.arange(n1), torch.arange(n2)).to(u.device, u.dtype) / points
    twiddles = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    entered = rounded(torch.einsum("kn,bcnm->bckm", first, x.to(first.dtype)) * twiddles)
    there = torch.einsum("bckm,lm->bckl", entered, second)
    product = rounded(there * rounded(_spectrum(taps, low, n1, n2)))
    # k = k1 + N1 * k2
    whole: Tensor = torch.fft.ifft(product.transpose(2, 3).flatten(2), norm="ortho").real
    z: Tensor = whole[..., :tokens].transpose(1, 2)
    return z


def _spectrum(taps: Tensor, low: int, n1: int, n2: int) -> Tensor:
    """W [C, N1, N2]: the DFT of taps at offsets of at most half of the points."""
    half = n1 * n2 // 2
    first, last = max(low, -half), min(low + taps.shape[1], half)
    held = taps[:, first - low : max(first, last) - low]
    wide = pad(held, (first + half, half - max(first, last)))
    found = torch.fft.fft(wide.roll(-half, 1))
    ordered: Tensor = found.view(-1, n2, n1).transpose(1, 2)
    return ordered
