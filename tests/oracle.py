"""The design's formula as loops over single numbers, in numpy fp64: the reference's reference.

It shares no code with attnc. Masks, scores, weights, maps and decays are Python functions of
numbers; decays are summed token by token, and states are folded token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Score = Callable[[float, int, int, int, int], float]  # of s, i, j, h, b
Decay = Callable[[int, int, int], float]  # of token, h, b
Channels = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Formula:
    """One variant as plain functions; `weight` None means softmax."""

    scale: float
    weight: Callable[[float], float] | None = None
    score: Score = field(default=lambda s, i, j, h, b: s)
    mask: Callable[[int, int], bool] = field(default=lambda i, j: True)
    phi: Callable[[float], float] = field(default=lambda x: x)
    log_decay: Decay | None = None
    normalize: str = "none"


def attention(
    formula: Formula, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """o [B, TQ, HQ, V] and the log of the normaliser [B, HQ, TQ], pair by pair."""
    batch, queries, heads, _ = q.shape
    keys, key_heads = k.shape[1], k.shape[2]
    out = np.zeros((batch, queries, heads, v.shape[-1]))
    log_normaliser = np.full((batch, heads, queries), -math.inf)
    for b in range(batch):
        for h in range(heads):
            for row in range(queries):
                i = row + keys - queries
                total, normaliser = _row(formula, q, k, v, (b, row, i, h), h * key_heads // heads)
                if normaliser > 0:
                    log_normaliser[b, h, row] = math.log(normaliser)
                if formula.weight is None or formula.normalize == "sum":
                    total = total / normaliser if normaliser != 0 else 0 * total
                out[b, row, h] = total
    return out, log_normaliser


def _row(
    formula: Formula,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    place: tuple[int, int, int, int],
    key_head: int,
) -> tuple[np.ndarray, float]:
    b, row, i, h = place
    total, normaliser = np.zeros(v.shape[-1]), 0.0
    for j in range(k.shape[1]):
        if not formula.mask(i, j):
            continue
        pairs = zip(q[b, row, h], k[b, j, key_head], strict=True)
        s = formula.scale * sum(formula.phi(x) * formula.phi(y) for x, y in pairs)
        if formula.weight is None:
            weight = math.exp(formula.score(s, i, j, h, b))
        else:
            weight = formula.weight(s)
        if formula.log_decay is not None:
            weight *= math.exp(sum(formula.log_decay(t, h, b) for t in range(j + 1, i + 1)))
        total = total + weight * v[b, j, key_head]
        normaliser += weight
    return total, normaliser


def recurrence(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    key_features: Channels,
    query_features: Channels,
    log_decay: Decay,
    state: np.ndarray,
    summed: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """o, and the last state, from the state [B, HS, F, V or V + 1] before the first token."""
    batch, tokens, heads, _ = q.shape
    key_heads, states = k.shape[2], state.shape[1]
    state = state.copy()
    out = np.zeros((batch, tokens, heads, v.shape[-1]))
    for b in range(batch):
        for t in range(tokens):
            for n in range(states):
                first_query = n * heads // states
                key_head = first_query * key_heads // heads
                value = v[b, t, key_head]
                if summed:
                    value = np.append(value, 1.0)
                decay = math.exp(log_decay(t, first_query, b))
                folded = np.outer(key_features(k[b, t, key_head]), value)
                state[b, n] = decay * state[b, n] + folded
            for h in range(heads):
                result = query_features(q[b, t, h]) @ state[b, h * states // heads]
                out[b, t, h] = result[:-1] / result[-1] if summed else result
    return out, state
