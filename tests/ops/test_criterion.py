"""The criterion lets rounding pass and nothing else: no zeros, no dropped mask, no NaN."""

from __future__ import annotations

import math

import pytest
import torch

from attnc.ops.verification.criterion import (
    Verdict,
    bound_of,
    check,
    check_agreement,
    check_lse,
    check_state,
)

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32]


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, masked: bool = True):
    """Attention of [T, D] tensors, each step in their dtype."""
    scores = (q @ k.T) * q.shape[-1] ** -0.5
    if masked:
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ v


@pytest.fixture(params=DTYPES, ids=str)
def attended(request):
    """q, k, v in a dtype, the fp64 reference and what eager torch gets in the dtype."""
    q, k, v = (torch.randn(63, 32).to(request.param) for _ in range(3))
    ref = causal_attention(q.double(), k.double(), v.double())
    return (q, k, v), ref, causal_attention(q, k, v)


def test_the_same_mathematics_in_the_dtype_passes(attended):
    _, ref, pt = attended
    verdict = check(pt, ref, pt)
    assert verdict.passed
    assert verdict.sound
    assert verdict.error <= verdict.bound
    assert str(verdict).startswith("passed: ")


def test_the_reference_itself_rounded_passes(attended):
    (q, _, _), ref, pt = attended
    assert check(ref.to(q.dtype), ref, pt).passed


def test_zeros_fail(attended):
    _, ref, pt = attended
    verdict = check(torch.zeros_like(pt), ref, pt)
    assert not verdict.passed
    assert verdict.zeros_fail


def test_a_dropped_mask_fails(attended):
    (q, k, v), ref, pt = attended
    assert not check(causal_attention(q, k, v, masked=False), ref, pt).passed


def test_a_wrong_scale_fails(attended):
    (q, k, v), ref, pt = attended
    assert not check(causal_attention(q * 1.2, k, v), ref, pt).passed


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_fails_and_is_named(attended, odd):
    _, ref, pt = attended
    out = pt.clone()
    out[37, 5] = odd
    verdict = check(out, ref, pt)
    assert not verdict.passed
    assert verdict.worst_index == (37, 5)
    assert verdict.error == math.inf
    assert verdict.ref_value == float(ref[37, 5])


def test_a_nan_fails_even_where_eager_torch_got_one_too(attended):
    _, ref, pt = attended
    pt = pt.clone()
    pt[3, 3] = math.nan
    assert not check(pt, ref, pt).passed
    assert not check(torch.full_like(pt, math.nan), ref, torch.full_like(pt, math.nan)).passed


def test_an_overflow_in_eager_torch_does_not_widen_the_bound(attended):
    (q, _, _), ref, pt = attended
    wild = pt.clone()
    wild[0, 0] = math.inf
    assert math.isfinite(bound_of(ref, wild, q.dtype))
    assert not check(torch.zeros_like(pt), ref, wild).passed


@pytest.mark.parametrize("shape", [(63, 31), (1, 63, 32), (63 * 32,), (1, 1)])
def test_another_shape_fails_even_if_it_would_broadcast(attended, shape):
    _, ref, pt = attended
    verdict = check(torch.zeros(shape, dtype=pt.dtype), ref, pt)
    assert not verdict.passed
    assert "the reference [63, 32]" in verdict.reason


def test_the_worst_element_is_named_with_both_values(attended):
    _, ref, pt = attended
    out = pt.clone()
    out[11, 7] += 2.0
    verdict = check(out, ref, pt)
    assert not verdict.passed
    assert verdict.worst_index == (11, 7)
    assert verdict.out_value == float(out[11, 7])
    assert "worst element [11, 7]" in str(verdict)


def test_fp32_is_held_to_a_relative_norm_and_gradients_to_a_wider_one():
    ref = torch.randn(50, 50, dtype=torch.float64)
    out = (ref * (1 + 5e-5)).float()
    assert not check(out, ref, out).passed
    assert check(out, ref, out, gradient=True).passed
    assert check((ref * (1 + 5e-6)).float(), ref, out).passed


def test_a_reference_of_zeros_is_met_by_zeros_alone():
    ref = torch.zeros(4, 4, dtype=torch.float64)
    out = torch.zeros(4, 4)
    verdict = check(out, ref, out)
    assert verdict.sound
    assert verdict.trivial
    assert not verdict.zeros_fail
    out[1, 2] = 1e-30
    assert not check(out, ref, torch.zeros(4, 4)).passed


def test_a_check_that_zeros_would_pass_is_not_sound():
    ref = torch.full((4, 4), 1e-6, dtype=torch.float64)
    pt = torch.full((4, 4), 1.0, dtype=torch.bfloat16)
    verdict = check(torch.zeros(4, 4, dtype=torch.bfloat16), ref, pt)
    assert verdict.passed
    assert not verdict.zeros_fail
    assert not verdict.sound


def test_a_nan_in_the_reference_fails_every_output():
    ref = torch.randn(4, 4, dtype=torch.float64)
    ref[2, 2] = math.nan
    for dtype in DTYPES:
        out = ref.to(dtype)
        assert not check(out, ref, out).passed


def test_an_lse_of_minus_infinity_must_be_met_exactly():
    ref = torch.tensor([-math.inf, 1.5, -2.0], dtype=torch.float64)
    assert check_lse(ref.float(), ref).passed
    assert not check_lse(torch.tensor([-1e30, 1.5, -2.0]), ref).passed
    assert not check_lse(torch.tensor([-math.inf, 1.5, -math.inf]), ref).passed
    assert not check_lse(torch.tensor([-math.inf, 1.5001, -2.0]), ref).passed
    assert not check_lse(torch.zeros(3), ref).passed


def test_two_forms_agree_within_the_bound_and_two_of_zeros_show_nothing(attended):
    (q, k, v), ref, pt = attended
    rounded = ref.to(q.dtype)
    assert check_agreement(pt, rounded, ref, pt).sound
    assert not check_agreement(causal_attention(q, k, v, masked=False), rounded, ref, pt).passed
    zeros = torch.zeros_like(pt)
    assert not check_agreement(zeros, zeros, ref, pt).sound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_is_held_to_what_its_features_dtype_gives(dtype):
    k, v = (torch.randn(200, 16).to(dtype) for _ in range(2))
    ref = k.double().T @ v.double()
    pt = (k.T.float() @ v.float()).to(dtype).float()
    assert check_state((k.T.float() @ v.float()), ref, pt, dtype).sound
    assert not check_state(torch.zeros(16, 16), ref, pt, dtype).passed
    assert not check_state((k.T.float() @ v.float()).T, ref, pt, dtype).passed


def test_a_verdict_is_frozen():
    verdict = check(torch.zeros(2), torch.zeros(2).double(), torch.zeros(2))
    assert isinstance(verdict, Verdict)
    with pytest.raises(AttributeError):
        verdict.passed = True
