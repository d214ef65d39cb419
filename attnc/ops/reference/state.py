"""The textbook state in eager torch: S_t = exp(log_decay_t) S_{t-1} + f(k_t) [v_t, 1].

Features of a mapped or purely linear weight are the channels of phi(k). Those of another polynomial
are the monomials of k of every degree it has, highest degree first; within a degree by index tuples
a1 <= a2 <= ... in lexicographic order. The key side is the plain product of entries of k; the query
side carries c_m * scale^m * (how many orders the tuple has).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations_with_replacement
from math import comb, factorial, prod

import torch
from torch import Tensor

from attnc.dsl.expr import Expr, Name, Ref, walk
from attnc.dsl.variant import Variant


def degrees(variant: Variant) -> tuple[int, ...]:
    """The degrees that monomials are kept of, descending; empty where phi(k) itself is kept."""
    feature_map = variant.feature_map
    if feature_map.kind == "map":
        return ()
    present = [m for m, c in enumerate(feature_map.coefficients) if c != 0]
    return () if present == [1] else tuple(reversed(present))


def feature_count(variant: Variant, head_dim: int) -> int:
    """F: how many features the state of one head keeps."""
    kept = degrees(variant)
    return sum(comb(head_dim + m - 1, m) for m in kept) if kept else head_dim


def state_heads(variant: Variant, query_heads: int, key_heads: int) -> int:
    """HS: a state a query head where decay or value depends on it, else one a key/value head."""
    expressions = (variant.log_decay, variant.value)
    differ = any(_uses_head(expr) for expr in expressions if expr is not None)
    return query_heads if differ else key_heads


def polynomial(variant: Variant, s: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """w(s) by Horner's rule; a mapped variant's weight is s itself."""
    if variant.feature_map.kind == "map":
        return s
    *lower, top = variant.feature_map.coefficients
    weight = torch.full_like(s, float(top))
    for coefficient in reversed(lower):
        weight = rounded(rounded(weight * s) + float(coefficient))
    return weight


def monomials(variant: Variant, x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Features [..., F] of channels [..., K], phi already applied, each product rounded."""
    kept = degrees(variant)
    if not kept:
        return x
    columns = []
    for degree in kept:
        value = x.new_ones((*x.shape[:-1], comb(x.shape[-1] + degree - 1, degree)))
        for index in _tuples(x.shape[-1], degree, x.device).unbind(1):
            value = rounded(value * x[..., index])
        columns.append(value)
    return torch.cat(columns, -1)


@lru_cache(maxsize=64)
def query_weights(variant: Variant, head_dim: int, scale: float) -> Tensor:
    """What the query's features carry, [F] fp64: c_m * scale^m * m!/alpha!."""
    coefficients = variant.feature_map.coefficients
    kept = degrees(variant)
    if not kept:
        linear = 1.0 if variant.feature_map.kind == "map" else float(coefficients[1])
        return torch.full((head_dim,), linear * scale, dtype=torch.float64)
    weights = [
        float(coefficients[degree]) * scale**degree * _orders(choice)
        for degree in kept
        for choice in combinations_with_replacement(range(head_dim), degree)
    ]
    return torch.tensor(weights, dtype=torch.float64)


@lru_cache(maxsize=64)
def _tuples(head_dim: int, degree: int, device: torch.device) -> Tensor:
    choices = list(combinations_with_replacement(range(head_dim), degree))
    return torch.tensor(choices, dtype=torch.int64, device=device).view(len(choices), degree)


def _orders(choice: tuple[int, ...]) -> int:
    return factorial(len(choice)) // prod(factorial(n) for n in Counter(choice).values())


def decays_channels(variant: Variant) -> bool:
    """Whether each channel of phi(k) has a decay of its own."""
    nodes = () if variant.log_decay is None else walk(variant.log_decay)
    return any(isinstance(node, Ref) and "k" in node.index for node in nodes)


def _uses_head(expr: Expr) -> bool:
    return any(
        node.id == "h" if isinstance(node, Name) else isinstance(node, Ref) and "h" in node.index
        for node in walk(expr)
    )
