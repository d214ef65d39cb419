"""What an op refuses, word for word, and what it takes: strides, one token, rows without keys."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.errors import AttncError
from attnc.ops.autograd import Attention, by_position
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped

VARIANTS = loads(
    """
[alibi]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s - slope[h]*(i - j)"
mask = "causal"
params.slope = { shape = ["h"] }

[gained]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s*gain"
params.gain = { shape = [] }

[banded]
feature_map = "identity"
scale = 1.0
mask = "window(3)"
normalize = "none"
"""
)
OPS = {name: compile_op(variant) for name, variant in {**shipped(), **VARIANTS}.items()}


def tensor(*sizes, dtype=torch.float32, seed=0):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(tq=8, tk=8, hq=2, hkv=2, qk=16, v=16, dtype=torch.float32):
    return (
        tensor(1, tq, hq, qk, dtype=dtype, seed=1),
        tensor(1, tk, hkv, qk, dtype=dtype, seed=2),
        tensor(1, tk, hkv, v, dtype=dtype, seed=3),
    )


def test_a_call_under_no_grad_takes_tensors_that_require_grad():
    q, k, v = qkv()
    with torch.no_grad():
        out = OPS["flash"](q.requires_grad_(), k, v)
    assert not out.requires_grad


def layouts(x):
    """The same values in other strides; the last as a slice of wider rows filled with NaN."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), math.nan, dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    yield x.transpose(1, 3).contiguous().transpose(1, 3)
    yield wide[..., : x.shape[-1]]


@pytest.mark.parametrize("name", ["flash", "linear"])
def test_any_strides_give_the_same_bits(name):
    tensors = qkv(tq=19, tk=19)
    kept = OPS[name](*tensors)
    for strided in zip(*(layouts(x) for x in tensors), strict=True):
        assert torch.equal(OPS[name](*strided), kept)


def test_one_key_for_all_tokens_may_have_a_stride_of_zero():
    q, k, v = qkv()
    shared = k[:, :1].expand(-1, 8, -1, -1)
    assert torch.equal(OPS["flash"](q, shared, v), OPS["flash"](q, shared.contiguous(), v))


@pytest.mark.parametrize("name", ["flash", "flash_window", "linear", "retnet", "based"])
def test_one_token_is_a_call(name):
    q, k, v = qkv(tq=1, tk=1)
    torch.testing.assert_close(
        OPS[name](q, k, v).double(), OPS[name].reference(q, k, v), rtol=1e-5, atol=1e-6
    )


def test_rows_that_see_no_key_give_zero_and_an_lse_of_minus_infinity():
    """Query t stands at t + TK - TQ, so the first TQ - TK rows of a causal call see nothing."""
    q, k, v = qkv(tq=9, tk=5)
    out, lse = OPS["flash"](q, k, v, return_lse=True)
    assert torch.equal(out[:, :4], torch.zeros_like(out[:, :4]))
    assert torch.equal(lse[..., :4], torch.full_like(lse[..., :4], -math.inf))
    assert out[:, 4:].isfinite().all() and lse[..., 4:].isfinite().all()
    ref, ref_lse = OPS["flash"].reference(q, k, v, return_lse=True)
    torch.testing.assert_close(out.double(), ref, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), ref_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "lightning", "retnet", "based"])
def test_a_call_in_two_parts_that_hand_the_state_on_is_the_call(name):
    q, k, v = qkv(tq=50, tk=50, hq=4, hkv=2)
    extra = {"slope": torch.tensor([0.02, 0.1, 0.3, 0.5])} if name == "lightning" else {}
    op = OPS[name]
    whole, last = op(q, k, v, return_state=True, **extra)
    torch.testing.assert_close(whole, op(q, k, v, **extra), rtol=1e-5, atol=1e-5)
    first, state = op(q[:, :17], k[:, :17], v[:, :17], return_state=True, **extra)
    assert state.shape == op.state_shape(1, 4, 2, 16, 16)
    assert state.dtype == torch.float32
    kept = state.clone()
    second, end = op(
        q[:, 17:], k[:, 17:], v[:, 17:], initial_state=state, return_state=True, **extra
    )
    assert torch.equal(state, kept)  # the state handed in is the caller's
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-4)


def test_a_scalar_param_is_a_number_or_a_tensor_without_axes():
    q, k, v = qkv()
    as_number = OPS["gained"](q, k, v, gain=0.5)
    assert torch.equal(as_number, OPS["gained"](q, k, v, gain=torch.tensor(0.5)))
    assert not torch.allclose(as_number, OPS["gained"](q, k, v, gain=2.0))


def test_all_heads_in_a_group_read_their_own_key_head():
    q, k, v = qkv(hq=4, hkv=2)
    spread = (x.repeat_interleave(2, dim=2) for x in (k, v))
    torch.testing.assert_close(OPS["flash"](q, k, v), OPS["flash"](q, *spread))


def test_a_compile_of_no_variant_says_what_it_takes():
    with pytest.raises(AttncError) as caught:
        compile_op("flash")
    assert caught.value.render() == (
        "error[A000]: compile takes a Variant, not a str\n"
        "  hint: attnc.load(path) returns a dict of variants by name\n"
        "  hint: and attnc.shipped() one of those that ship"
    )


def test_autograd_binds_a_forwards_arguments_as_python_would():
    signature = inspect.signature(Attention.forward)
    given = ("key", "", "fp32", 1, 2, 3, None, 4, 5)
    plain = inspect.Signature(list(signature.parameters.values())).bind(*given)
    bound = signature.bind(*given)
    bound.apply_defaults()
    assert (bound.args, bound.kwargs) == (plain.args, plain.kwargs) == (given, {})
    with pytest.raises(AssertionError, match="a default would not be applied"):
        by_position(lambda q, form="": q)
