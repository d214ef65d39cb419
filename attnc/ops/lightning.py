"""Lightning Attention-2 as a declaration."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from attnc.dsl import Param, Variant, h
from attnc.ops.op import Op


def lightning_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slope: torch.Tensor,
    *,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """Linear attention that decays by exp(-slope[h]) a token; returns o, or (o, state).

    Shapes: q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V], slope [HQ]; the state is
    [B, HQ, K, V] fp32, the textbook one: it has been decayed through the last token.

    Source: Lightning Attention-2, arXiv 2401.04658, algorithm 1.
    """
    op = _lightning(scale)
    return op(q, k, v, slope=slope, initial_state=initial_state, return_state=return_state)


@lru_cache(maxsize=64)
def _lightning(scale: float) -> Op:
    slope = Param("slope", shape="h", grad=True)
    return Op(
        Variant(
            "lightning_attention",
            feature_map="identity",
            scale=scale,
            log_decay=-slope[h],
            mask="causal",
            normalize="none",
        )
    )
