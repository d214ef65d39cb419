"""Based's Taylor attention as a declaration."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from attnc.dsl import Variant
from attnc.ops.op import Op


def based_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    order: int = 2,
    use_norm: bool = True,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """Causal attention with the weight 1 + s + s**2/2; returns o, or (o, state).

    Shapes: q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the state is
    [B, HKV, F, V + 1] fp32 (V without `use_norm`), see docs/state.md.

    Source: Based, arXiv 2402.18668, section 3.
    """
    op = _based(scale, order, use_norm)
    return op(q, k, v, initial_state=initial_state, return_state=return_state)


@lru_cache(maxsize=64)
def _based(scale: float | None, order: int, use_norm: bool) -> Op:
    return Op(
        Variant(
            "based_attention",
            feature_map=f"taylor({order})",
            scale="rsqrt(d)" if scale is None else scale,
            mask="causal",
            normalize="sum" if use_norm else "none",
        )
    )
