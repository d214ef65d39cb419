"""Prefill and step of a sum of terms whose folded term stands in a state.

A prefill has two parts, each an op of its own, and one normaliser for both: the folded term by
chunks from the state, its keys handed over N tokens late, since its mask is i - j >= N; and the
other terms over the ring and the new keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from attnc.codegen.algebra import Algebra
from attnc.codegen.plan import Request
from attnc.codegen.planning.decode_planner import no_state
from attnc.codegen.planning.ring import folded_ring_size
from attnc.ops.decode.kv_cache import KVCache
from attnc.ops.decode.kv_decode import check_cache, prefill_cache, step_cache
from attnc.ops.decode.matrix_state import MatrixState
from attnc.ops.decode.sum_state import SumState
from attnc.ops.given_tensors import check_tensors
from attnc.ops.inputs import Sizes
from attnc.ops.reference.evaluate import evaluate
from attnc.ops.reference.run import Run, head_index

if TYPE_CHECKING:
    from attnc.ops.decode.decoding import Decoding


def folded_ring(request: Request, algebra: Algebra) -> tuple[int | None, str]:
    """How many keys the ring beside a state holds; None and why where there is no state."""
    why = no_state(request, algebra)
    return (None, why) if why else folded_ring_size(request.variant, algebra)


def check_sum_state(op: Decoding, state: SumState, sizes: Sizes, q: torch.Tensor) -> KVCache:
    """The ring of a state, seen to fit the call together with the matrix.

    Raises:
        InputError: it is for other sizes, another dtype or device, or another op.
    """
    ring = folded_ring_size(op.variant, op._algebra)
    if ring[0] is None:
        return check_cache(op, state, sizes, q)  # which says what it takes instead
    op._check_matrix(state.matrix, sizes, q)
    return check_cache(op, state.cache, sizes, q, ring)


def step_sum(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: SumState,
    tensors: Mapping[str, torch.Tensor | float],
    sizes: Sizes,
    precision: str,
) -> list[torch.Tensor]:
    """o [B, 1, HQ, V] and lse [B, HQ, 1]: one launch, the ring and the state written in place."""
    cache = check_sum_state(op, state, sizes, q)
    return step_cache(
        op, q, k, v, cache, tensors, sizes, precision, kind="folded", beside=state.matrix.tensors
    )


def prefill_sum(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: SumState,
    tensors: Mapping[str, torch.Tensor | float],
    sizes: Sizes,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, T, HQ, V] and lse [B, HQ, T] of the new rows; the ring and the state take the keys."""
    cache = check_sum_state(op, state, sizes, q)
    given = check_tensors(op.variant, tensors, replace(sizes, tk=cache.capacity), q)
    held, distance = cache.length(), op._algebra.distance
    # the first rows of a sequence find no key of the folded term
    alone = min(max(0, distance - held), sizes.tq)
    from_state: tuple[torch.Tensor, torch.Tensor] | None = None
    if alone < sizes.tq:
        late = _late(cache, held, distance, sizes.tq - alone, k, v)
        o, norm = _fold(op, q[:, alone:], *late, state.matrix, precision)
        from_state = o, _log_weight(op, q, k, norm, given)
    options = {"return_lse": True, "precision": precision}
    o, lse = prefill_cache(op.near, q, k, v, cache, tensors, options)
    if from_state is None:
        return o, lse
    rows, logs = _joined(o[:, alone:], lse[:, :, alone:], *from_state)
    return torch.cat([o[:, :alone], rows], 1), torch.cat([lse[:, :, :alone], logs], 2)


def _late(
    cache: KVCache, held: int, distance: int, rows: int, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that enter the state at these rows: those `distance` tokens before them."""
    start = max(0, held - distance)
    if held == start:
        return k[:, :rows], v[:, :rows]
    kept = cache.read(start, held)
    keys, values = (torch.cat(pair, 1)[:, :rows] for pair in zip(kept, (k, v), strict=True))
    return keys, values


def _fold(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    matrix: MatrixState,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the folded term alone and their normalisers [B, HQ, T]; the matrix goes on."""
    o, norm, packed = op.folded.forward(q, k, v, [], matrix.packed(), None, precision)
    matrix.fill(packed)
    term = op._algebra.state
    if term.direct:
        # a linear weight's constant cancels in the quotient, and not beside other terms
        norm = norm * (float(term.coefficients[1]) * op.folded.variant.scale.value(q.shape[-1]))
    return o, norm


def _log_weight(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    norm: torch.Tensor,
    given: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """The log of what the folded term weighs, its factor in it."""
    # no weight is negative, but what cancels may round to less than 0
    log = norm.clamp(min=0.0).log()
    assert op._algebra.folded is not None
    factor = op.variant.terms[op._algebra.folded].factor
    if factor is None:
        return log
    run = Run(op.variant, q, k, k, dict(given), norm.dtype, None, None)
    index = head_index(slice(0, q.shape[0]), slice(0, q.shape[2]), run.group, q.device)
    return (log[..., None] + evaluate(factor, run.scope(index)).log())[..., 0]


def _joined(
    o: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, log: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two parts of the same rows under one normaliser; a row that saw nothing gives 0 and -inf."""
    top = torch.maximum(lse, log)
    top = torch.where(top == float("-inf"), 0.0, top)
    weights = [torch.exp(x - top) for x in (lse, log)]
    total = weights[0] + weights[1]
    shares = (x / torch.where(total == 0.0, 1.0, total) for x in weights)
    first, second = (x.transpose(1, 2)[..., None] for x in shares)
    return (o * first + other * second).to(o.dtype), top + total.log()
