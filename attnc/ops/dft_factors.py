"""The factors of a DFT, which declared ones start from. Copied as it is into wheels."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import torch

from attnc.dsl.butterfly import factors_for
from attnc.errors import InputError

if TYPE_CHECKING:
    from attnc.dsl.convolution import Convolution


def dft_factors(
    variant: Convolution, tokens: int, device: torch.device | str | None = None
) -> dict[str, torch.Tensor]:
    """Both factors [2, N1, N1 / 2] and [2, N2, N2] by their declared names, each unitary.

    Raises:
        InputError: the variant declares none, or `tokens` is no number of at least 1.
        PlanError: there are more tokens than any block has.
    """
    outer, inner = variant.filter.outer, variant.filter.inner
    if outer is None or inner is None:
        raise InputError(
            f"{variant.name!r} declares no factors",
            hints=('outer = "F1[z, k1, n1]" and inner = "F2[z, k2, n2]" are learned',),
        )
    n1, n2 = factors_for(_count(tokens))
    found = {}
    for name, rows, columns in ((outer.name, n1, n1 // 2), (inner.name, n2, n2)):
        places = (torch.arange(size, dtype=torch.float64) for size in (rows, columns))
        angles = torch.outer(*places) / rows * (-2 * torch.pi)
        factor = torch.stack([angles.cos(), angles.sin()]) * rows**-0.5
        found[name] = factor.to(device, torch.float32)
    return found


def _count(tokens: SupportsIndex) -> int:
    """A number of tokens, of any library's integers."""
    try:
        found = 0 if isinstance(tokens, bool) else index(tokens)
    except TypeError:
        found = 0
    if found < 1:
        raise InputError(
            f"tokens is {tokens!r}, no number of at least 1",
            hints=("pass the length of the longest sequence: op.init_factors(v.shape[1])",),
        )
    return found
