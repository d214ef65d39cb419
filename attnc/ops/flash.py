"""FlashAttention as a declaration, with the arguments its users expect."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from attnc.dsl import Expr, Param, Variant, abs_, full, h, i, j, s, window
from attnc.dsl import causal as causal_mask
from attnc.dsl import softcap as softcap_score
from attnc.errors import InputError
from attnc.ops.op import Op


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """Softmax attention; returns o, or (o, lse [B, HQ, TQ]).

    Shapes: q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V]; alibi_slopes [HQ] or [B, HQ].
    `window_size` is (left, right) in tokens, inclusive, -1 for no bound; `softcap` 0 is none.

    Raises:
        InputError: shapes or a window that do not fit, or dropout, which is not supported.

    Source: FlashAttention-2, arXiv 2307.08691.
    """
    if dropout_p:
        raise InputError(
            f"dropout_p = {dropout_p}: dropout is not supported",
            hints=("apply dropout to the output",),
        )
    sides = tuple(window_size) if isinstance(window_size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise InputError(
            f"window_size = {window_size!r} is not (left, right)",
            notes=("both are whole numbers of tokens, inclusive, and -1 is no bound",),
            hints=("a causal window that reaches w keys back is causal=True, window_size=(w, 0)",),
        )
    biased = None if alibi_slopes is None else alibi_slopes.dim()
    op = _flash(causal, softmax_scale, sides, float(softcap), biased)
    if alibi_slopes is None:
        return op(q, k, v, return_lse=return_lse)
    return op(q, k, v, return_lse=return_lse, slope=alibi_slopes)


@lru_cache(maxsize=256)
def _flash(
    is_causal: bool,
    scale: float | None,
    window_size: tuple[int, int],
    cap: float,
    biased: int | None,
) -> Op:
    left, right = window_size
    score: Expr = s if cap == 0 else softcap_score(s, cap)
    if biased is not None:
        slope = Param("slope", shape="h" if biased == 1 else "b,h", grad=True)
        index = slope[h] if biased == 1 else slope["b", "h"]
        # flash-attn's ALiBi falls off on both sides of the query
        score = score - index * abs_(i - j)
    mask: Expr = causal_mask if is_causal else full
    if left >= 0 or right >= 0:
        mask = mask & _window(left, right)
    return Op(
        Variant(
            "flash_attention",
            feature_map="softmax",
            scale="rsqrt(d)" if scale is None else scale,
            score=score,
            mask=mask,
        )
    )


def _window(left: int, right: int) -> Expr:
    if left < 0:
        return j <= i + right
    return window(left) if right < 0 else window(left, right)
