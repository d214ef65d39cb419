"""The cache itself: pages, lengths, its capacity, copies of it."""

from __future__ import annotations

import pytest
import torch

from attnc.errors import AttncError
from attnc.ops.op import compile as compile_op
from tests.ops.test_decode_cache import TOKENS, VARIANTS, cache_of, decoded, drawn


def test_sequences_of_different_lengths_take_a_step_together():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=40)
    op.prefill(*(t[:, :9] for t in x.qkv), state)
    # the second sequence starts over
    state.lengths[1] = 4
    last = [t[:, 20:21] for t in x.qkv]
    out, _ = op.step(*last, state)
    for b, length in enumerate((9, 4)):
        keys, values = (
            torch.cat([t[b : b + 1, :length], t[b : b + 1, 20:21]], 1) for t in x.qkv[1:]
        )
        ref = op.reference(last[0][b : b + 1], keys, values)
        assert (out[b : b + 1] - ref).norm() < 1e-5 * ref.norm()
    assert state.lengths.tolist() == [10, 5]
    with pytest.raises(AttncError, match="have lengths from 5 to 10"):
        op.prefill(*(t[:, :2] for t in x.qkv), state)


def test_pages_in_any_order_hold_the_same_tokens():
    op, x = compile_op(VARIANTS["flash_alibi"]), drawn("flash_alibi", torch.float32)
    table = torch.tensor([[7, 2, 5], [0, 6, 3]], dtype=torch.int32)
    outs = []
    for options in ({"pages": 9, "block_table": table}, {}):
        state = cache_of(op, x, capacity=24, page_size=8, **options)
        outs.append(decoded(op, x, state, (10,))[0])
    assert torch.equal(*outs)
    assert state.keys.shape == (6, 8, 2, 32)


def test_a_step_past_the_capacity_that_only_a_graph_can_take_gives_nan_and_writes_nothing():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=TOKENS)
    op.prefill(*x.qkv, state)
    kept = state.keys.clone()
    state.tokens = 0  # a replayed graph does not ask the host
    out, _ = op.step(*(t[:, :1] for t in x.qkv), state)
    assert out.isnan().all()
    assert torch.equal(state.keys, kept)


def test_reset_and_clone_leave_the_other_alone():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=40)
    op.prefill(*x.qkv, state)
    other = state.clone()
    state.reset()
    assert (state.tokens, state.lengths.tolist()) == (0, [0, 0])
    assert (other.tokens, other.lengths.tolist()) == (TOKENS, [TOKENS] * 2)
    assert other.nbytes == 2 * 40 * 2 * (32 + 40) * 4
    assert other.keys.stride() == state.keys.stride()
