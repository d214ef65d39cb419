"""The public functions against what torch computes in plain eager code, argument by argument."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attnc.errors import InputError
from attnc.ops import based_attention, flash_attention, lightning_attention

TQ, TK, HQ, HKV, K = 37, 37, 4, 2, 32


def qkv(tq=TQ, tk=TK, qk=K, v=K, hq=HQ, hkv=HKV):
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(sizes, generator=generator)

    return normal(2, tq, hq, qk), normal(2, tk, hkv, qk), normal(2, tk, hkv, v)


def spread(x, heads=HQ):
    """Key heads repeated for their query heads."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def scores(q, k):
    """q.k [B, HQ, TQ, TK] in fp64, and the distance i - j [TQ, TK]."""
    s = torch.einsum("bihd,bjhd->bhij", q.double(), spread(k).double())
    i = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    return s, i - torch.arange(k.shape[1])[None, :]


def weighted(weights, v):
    return torch.einsum("bhij,bjhc->bihc", weights, spread(v).double())


def close(out, expected):
    torch.testing.assert_close(out.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_flash_attention_is_torch_sdpa(causal, scale):
    q, k, v = qkv()
    by_head = (x.double().transpose(1, 2) for x in (q, spread(k), spread(v)))
    expected = scaled_dot_product_attention(*by_head, is_causal=causal, scale=scale)
    close(flash_attention(q, k, v, causal=causal, softmax_scale=scale), expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("causal", "window"),
    [
        (False, (5, 3)), (False, (5, -1)), (False, (-1, 3)), (False, (0, 0)),
        (True, (5, -1)), (True, (5, 0)), (True, (-1, 0)), (True, (5, 3)),
    ],
)  # fmt: skip
def test_a_window_is_inclusive_on_both_sides(causal, window):
    q, k, v = qkv(tk=50)
    _, distance = scores(q, k)
    left, right = window
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    if causal:
        seen &= distance >= 0
    by_head = (x.double().transpose(1, 2) for x in (q, spread(k), spread(v)))
    expected = scaled_dot_product_attention(*by_head, attn_mask=seen).transpose(1, 2)
    close(flash_attention(q, k, v, causal=causal, window_size=window), expected)


@pytest.mark.parametrize("cap", [0.8, 30.0])
def test_a_softcap_bounds_the_scaled_score(cap):
    q, k, v = qkv()
    s, distance = scores(q, k)
    s = cap * torch.tanh(s / math.sqrt(K) / cap)
    s = s.masked_fill(distance < 0, -math.inf)
    close(flash_attention(q, k, v, causal=True, softcap=cap), weighted(s.softmax(-1), v))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_alibi_falls_with_the_distance_on_both_sides(causal, batched):
    q, k, v = qkv()
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    given = torch.stack([slopes, slopes / 2]) if batched else slopes
    s, distance = scores(q, k)
    bias = given[..., None, None] * distance.abs()
    s = s / math.sqrt(K) - bias
    if causal:
        s = s.masked_fill(distance < 0, -math.inf)
    out = flash_attention(q, k, v, causal=causal, alibi_slopes=given)
    close(out, weighted(s.softmax(-1), v))


def test_the_lse_is_the_log_of_the_sum_of_weights():
    q, k, v = qkv(tq=20, tk=37)
    s, distance = scores(q, k)
    s = (s / math.sqrt(K)).masked_fill(distance < 0, -math.inf)
    out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    close(out, weighted(s.softmax(-1), v))
    assert lse.shape == (2, HQ, 20)
    assert lse.dtype == torch.float32
    close(lse, s.logsumexp(-1))


def test_dropout_is_refused_in_these_words():
    with pytest.raises(InputError) as caught:
        flash_attention(*qkv(), dropout_p=0.1)
    assert caught.value.render() == (
        "error[A300]: dropout_p = 0.1: dropout is not supported\n"
        "  hint: apply dropout to the output"
    )


@pytest.mark.parametrize("window", [3, (3,), (3.0, 0), None])
def test_a_window_that_is_no_pair_is_refused(window):
    with pytest.raises(InputError) as caught:
        flash_attention(*qkv(), window_size=window)
    assert caught.value.render() == (
        f"error[A300]: window_size = {window!r} is not (left, right)\n"
        "  note: both are whole numbers of tokens, inclusive, and -1 is no bound\n"
        "  hint: a causal window that reaches w keys back is causal=True, window_size=(w, 0)"
    )


def taylor(s, order):
    return sum(s**n / math.factorial(n) for n in range(order + 1))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("use_norm", [True, False])
def test_based_attention_weighs_by_the_series_of_exp(order, use_norm):
    q, k, v = qkv(qk=16, v=32)
    if order == 1:
        q, k = q.abs(), k.abs()  # 1 + s of both signs sums to about 0
    s, distance = scores(q, k)
    weights = taylor(s / 4, order).masked_fill(distance < 0, 0.0)
    expected = weighted(weights, v)
    if use_norm:
        expected = expected / weights.sum(-1).transpose(1, 2)[..., None]
    close(based_attention(q, k, v, order=order, use_norm=use_norm), expected)


def test_based_attention_takes_another_scale():
    q, k, v = qkv(qk=16)
    s, distance = scores(q, k)
    weights = taylor(0.1 * s, 2).masked_fill(distance < 0, 0.0)
    expected = weighted(weights, v) / weights.sum(-1).transpose(1, 2)[..., None]
    close(based_attention(q, k, v, scale=0.1), expected)


def test_based_attention_hands_its_state_on():
    q, k, v = qkv(qk=16, v=32)
    whole = based_attention(q, k, v)
    first, state = based_attention(q[:, :15], k[:, :15], v[:, :15], return_state=True)
    assert state.shape == (2, HKV, 153, 33)
    assert state.dtype == torch.float32
    second = based_attention(q[:, 15:], k[:, 15:], v[:, 15:], initial_state=state)
    close(torch.cat([first, second], 1), whole)


def lightning_by_token(q, k, v, slope, state, scale=1.0):
    """The recurrence of the paper, token by token: S = exp(-slope) S + k v."""
    decay = torch.exp(-slope.double())[None, :, None, None]
    out = []
    for t in range(q.shape[1]):
        pair = spread(k)[:, t, :, :, None].double() * spread(v)[:, t, :, None, :].double()
        state = decay * state + pair
        out.append(scale * torch.einsum("bhd,bhdc->bhc", q[:, t].double(), state))
    return torch.stack(out, 1), state


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_lightning_attention_is_its_recurrence_from_any_state(scale):
    q, k, v = qkv(v=48)
    slope = torch.tensor([0.01, 0.1, 0.5, 2.0])
    start = 0.3 * torch.randn(2, HQ, K, 48, generator=torch.Generator().manual_seed(5))
    out, last = lightning_attention(
        q, k, v, slope, scale=scale, initial_state=start, return_state=True
    )
    expected, state = lightning_by_token(q, k, v, slope, start.double(), scale)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.double(), state, rtol=1e-4, atol=1e-4)


def test_lightning_attention_of_no_decay_is_linear_attention():
    q, k, v = qkv()
    s, distance = scores(q, k)
    out = lightning_attention(q, k, v, torch.zeros(HQ))
    expected = weighted(s.masked_fill(distance < 0, 0.0), v)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)


def test_one_op_serves_all_calls_with_the_same_arguments():
    """A new op a call would plan and emit again each time."""
    from attnc.ops.flash import _flash

    q, k, v = qkv()
    flash_attention(q, k, v, causal=True)
    before = _flash.cache_info().misses
    flash_attention(q, k, v, causal=True)
    assert _flash.cache_info().misses == before
