"""What a convolution means, in eager torch: a direct sum over taps, in fp64.

    u = pregate * v        o[t, c] = postgate * (sum_d w[c, d] u[t - d, c] + D[c] u[t, c])

`rounding` gives what eager torch would have got in a working dtype: taps and every intermediate
rounded to it, sums in fp32. By transforms, the spectra and their product are intermediates too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from attnc.dsl.convolution import Convolution, Filter
from attnc.ops.reference.butterfly import butterfly
from attnc.ops.reference.evaluate import round_to


def convolve(
    variant: Convolution,
    v: Tensor,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    rounding: torch.dtype | None = None,
    by_fft: bool = False,
) -> Tensor:
    """o [B, T, C] of v [B, T, C] by the formula, in `dtype`.

    `by_fft` makes the sums by fp64 transforms: as exact to 1e-12, and O(T log T) where filters are
    long.
    """
    found = variant.filter

    def given(ref: object) -> Tensor | None:
        return None if ref is None else tensors[ref.name].to(dtype)  # type: ignore[attr-defined]

    def rounded(x: Tensor) -> Tensor:
        return round_to(x, rounding)

    with torch.autocast(v.device.type, enabled=False):
        weight, skip = given(found.weight), given(found.skip)
        pregate, postgate = given(found.pregate), given(found.postgate)
        assert weight is not None
        u = v.to(dtype)
        if pregate is not None:
            u = rounded(u * pregate)
        low, high = found.offsets(weight.shape[1])
        taps = rounded(_transformed(found, weight)[:, : high - low + 1])
        outer, inner = given(found.outer), given(found.inner)
        if outer is not None and inner is not None:
            z = butterfly(u, taps, low, outer, inner, rounding)
        else:
            z = _sum_by_fft(u, taps, low, rounding) if by_fft else _direct_sum(u, taps, low, high)
        if skip is not None:
            z = z + rounded(skip) * u
        z = rounded(z)
        return z if postgate is None else rounded(z * postgate)


def _direct_sum(u: Tensor, taps: Tensor, low: int, high: int) -> Tensor:
    # conv1d correlates: tap d stands before tap d + 1, so the taps are turned
    far = max(abs(low), abs(high))
    wide = pad(u.transpose(1, 2), (far, far))
    padded = wide[..., far - high : far - low + u.shape[1]]
    return conv1d(padded, taps.flip(1)[:, None], groups=taps.shape[0]).transpose(1, 2)


def _sum_by_fft(u: Tensor, taps: Tensor, low: int, rounding: torch.dtype | None) -> Tensor:
    tokens, count = u.shape[1], taps.shape[1]
    points = 1 << (tokens + count - 1).bit_length()

    def rounded(x: Tensor) -> Tensor:
        return torch.view_as_complex(round_to(torch.view_as_real(x), rounding))

    # unitary, so that a spectrum is as large as its tokens and fits the working dtype
    spectrum = rounded(torch.fft.rfft(u.double(), n=points, dim=1, norm="ortho"))
    weight = rounded(torch.fft.rfft(taps.double(), n=points, dim=1)).T
    spectrum = rounded(spectrum * weight)
    # place s of the whole sum is token s + low; what lies beyond its ends is 0
    whole = pad(torch.fft.irfft(spectrum, n=points, dim=1, norm="ortho"),
                (0, 0, max(0, low), max(0, tokens - low - points)))  # fmt: skip
    start = max(0, -low)
    return whole[:, start : start + tokens].to(u.dtype)


def _transformed(found: Filter, taps: Tensor) -> Tensor:
    """The declared transforms, by their formulas; dropout is the identity outside training."""
    for transform in found.transforms:
        if transform.name == "smooth":
            width = int(transform.value)
            ones = torch.ones((1, 1, width), dtype=taps.dtype, device=taps.device) / width
            taps = conv1d(pad(taps, (width // 2, width // 2))[:, None], ones)[:, 0]
        elif transform.name == "squash":
            taps = taps - taps.clamp(-transform.value, transform.value)
    return taps


def convolution_gradients(
    variant: Convolution,
    v: Tensor,
    tensors: Mapping[str, Tensor],
    incoming: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    rounding: torch.dtype | None = None,
    by_fft: bool = False,
) -> dict[str, Tensor]:
    """Gradients by name, v's first, by autograd through the formula."""
    declared = {d.name: d for d in (*variant.params, *variant.inputs)}
    leaves = {"v": v.detach().to(dtype).requires_grad_()}
    given = {}
    for name, x in tensors.items():
        given[name] = x.detach().to(dtype)
        if declared[name].grad:
            leaves[name] = given[name].requires_grad_()
    with torch.enable_grad():
        out = convolve(
            variant, leaves["v"], given, dtype=dtype, rounding=rounding, by_fft=by_fft
        )  # fmt: skip
        found = torch.autograd.grad(out, list(leaves.values()), incoming.to(dtype))
    return dict(zip(leaves, found, strict=True))
