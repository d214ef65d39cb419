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


def changed(**changes):
    """q, k and v of the usual sizes, some of them replaced."""
    usual = dict(zip("qkv", qkv(), strict=True))
    return tuple({**usual, **changes}.values())


SLOPE = torch.ones(2)
STATE = torch.zeros(1, 2, 16, 16)
# name -> (variant, q k v, other arguments)
REFUSED = {
    "three dimensions": ("flash", changed(q=tensor(8, 2, 16)), {}),
    "a list": ("flash", changed(k=[1.0, 2.0]), {}),
    "k of another batch": ("flash", changed(k=tensor(2, 8, 2, 16)), {}),
    "k of another head dim": ("flash", changed(k=tensor(1, 8, 2, 32)), {}),
    "v of another length": ("flash", changed(v=tensor(1, 9, 2, 16)), {}),
    "heads that do not divide": ("flash", qkv(hq=3, hkv=2), {}),
    "no heads": ("flash", qkv(hkv=0), {}),
    "a narrow head": ("flash", qkv(qk=8), {}),
    "a wide value": ("flash", qkv(v=257), {}),
    "no batch": ("flash", tuple(x[:0] for x in qkv()), {}),
    "integers": ("flash", qkv(dtype=torch.int32), {}),
    "two dtypes": ("flash", changed(v=qkv()[2].half()), {}),
    "two devices": ("flash", changed(k=qkv()[1].to("meta")), {}),
    "a device without kernels": ("flash", tuple(x.to("meta") for x in qkv()), {}),
    "a missing param": ("alibi", qkv(), {}),
    "a misspelt param": ("alibi", qkv(), {"slopes": SLOPE}),
    "a param of nobody": ("flash", qkv(), {"bias": SLOPE}),
    "dropout": ("flash", qkv(), {"dropout_p": 0.1}),
    "a param of another shape": ("alibi", qkv(), {"slope": torch.ones(3)}),
    "a number for a vector": ("alibi", qkv(), {"slope": 1.0}),
    "a list for a vector": ("alibi", qkv(), {"slope": [1.0, 1.0]}),
    "an integer param": ("alibi", qkv(), {"slope": torch.ones(2, dtype=torch.int64)}),
    "a param on another device": ("alibi", qkv(), {"slope": torch.ones(2, device="meta")}),
    "grad of a param": ("alibi", qkv(), {"slope": torch.ones(2, requires_grad=True)}),
    "lse of a state": ("lightning", qkv(), {"slope": SLOPE, "return_lse": True}),
    "state of softmax": ("flash", qkv(), {"return_state": True}),
    "state of a band": ("banded", qkv(), {"return_state": True}),
    "state of another shape": ("linear", qkv(), {"initial_state": STATE}),
    "state of another dtype": ("retnet", qkv(), {"initial_state": STATE.half()}),
    "state on another device": ("retnet", qkv(), {"initial_state": STATE.to("meta")}),
    "state of the parallel form": ("linear", qkv(), {"form": "parallel", "return_state": True}),
    "state of two lengths": ("linear", qkv(tk=9), {"return_state": True}),
    "chunks of two lengths": ("linear", qkv(tk=9), {"form": "chunked"}),
    "tokens of two lengths": ("linear", qkv(tk=9), {"form": "recurrent"}),
    "no form at all": ("linear", qkv(), {"form": "recursive"}),
    "a form of another family": ("flash", qkv(), {"form": "chunked"}),
    "a form without a causal mask": ("banded", qkv(), {"form": "chunked"}),
    "a precision of nobody": ("flash", qkv(), {"precision": "bf16"}),
}
TEXTS = """
== three dimensions
error[A300]: q has 3 dimensions, not 4: shape [8, 2, 16]
  note: q is [B, TQ, HQ, K], the layout of flash-attn and fla
  hint: a [B, H, T, D] tensor becomes one by .transpose(1, 2)
== a list
error[A300]: k is a list, not a tensor
== k of another batch
error[A300]: k has shape [2, 8, 2, 16], expected [1, 8, 2, 16]
  note: q is [1, 8, 2, 16], k is [2, 8, 2, 16], v is [1, 8, 2, 16]
  note: B and K come from q, TK and HKV must agree between k and v
== k of another head dim
error[A300]: k has shape [1, 8, 2, 32], expected [1, 8, 2, 16]
  note: q is [1, 8, 2, 16], k is [1, 8, 2, 32], v is [1, 8, 2, 16]
  note: B and K come from q, TK and HKV must agree between k and v
== v of another length
error[A300]: k has shape [1, 8, 2, 16], expected [1, 9, 2, 16]
  note: q is [1, 8, 2, 16], k is [1, 8, 2, 16], v is [1, 9, 2, 16]
  note: B and K come from q, TK and HKV must agree between k and v
== heads that do not divide
error[A300]: 3 query heads are not a multiple of 2 key/value heads
  note: query head h reads key/value head h // (HQ / HKV)
  hint: heads stand in dimension 2: [B, T, H, D]
== no heads
error[A300]: 2 query heads are not a multiple of 0 key/value heads
  note: query head h reads key/value head h // (HQ / HKV)
  hint: heads stand in dimension 2: [B, T, H, D]
== a narrow head
error[A300]: head dim K = 8 is outside 16 to 256
  hint: split or pad the heads
== a wide value
error[A300]: head dim V = 257 is outside 16 to 256
  hint: split or pad the heads
== no batch
error[A300]: empty input: q is [0, 8, 2, 16], v is [0, 8, 2, 16]
== integers
error[A300]: q is torch.int32; kernels exist for fp16, bf16 and fp32, and for e4m3 with scales
  hint: convert the tensors first
== two dtypes
error[A300]: v is torch.float16, q is torch.float32: they must be of one type
== two devices
error[A300]: k is on meta, q is on cpu
== a device without kernels
error[A300]: q is on meta; kernels run on cuda, and on cpu in Triton's interpreter
== a missing param
error[A300]: 'alibi' needs param 'slope'
  note: declared with shape [h] = [2]
  hint: pass slope=... to the call
== a misspelt param
error[A300]: 'alibi' takes no argument 'slopes'
  note: declared params and inputs: slope
  hint: did you mean 'slope'?
== a param of nobody
error[A300]: 'flash' takes no argument 'bias'
  note: declared params and inputs: none
== dropout
error[A300]: 'flash' takes no argument 'dropout_p'
  note: declared params and inputs: none
  hint: dropout is not supported: apply it to the output, or to the inputs
== a param of another shape
error[A300]: 'slope' has shape [3], expected [2]
  note: declared as [h]
== a number for a vector
error[A300]: 'slope' is a number, its shape is [h]
  hint: pass a tensor of shape [2]
== a list for a vector
error[A300]: 'slope' is a list, not a tensor
  hint: pass a tensor of shape [2]
== an integer param
error[A300]: 'slope' is torch.int64, it must be floating point
== a param on another device
error[A300]: 'slope' is on meta, q is on cpu
== grad of a param
error[A300]: param 'slope' of 'alibi' requires grad, and is declared without
  note: a gradient that nobody asked for costs time at every step
  hint: declare params.slope = { shape = ["h"], grad = true }, or detach the tensor
== lse of a state
error[A300]: 'lightning' has no lse: it belongs to the state family
  hint: return_state=True gives what a later call continues from
== state of softmax
error[A300]: 'flash' has no state: it belongs to the softmax family
  note: exp(score) is no finite polynomial in s, so no state of fixed size holds it
  hint: return_lse=True gives what combines with another call's keys
== state of a band
error[A300]: 'banded' has no state
  note: the mask is not exactly causal, and a fold over tokens sees just j <= i
== state of another shape
error[A300]: initial_state has shape [1, 2, 16, 16], expected [1, 2, 16, 17]
  note: the state of 'linear' is [B, HS, F, columns]; see docs/state.md
== state of another dtype
error[A300]: initial_state is torch.float16, it must be torch.float32
== state on another device
error[A300]: initial_state is on meta, q is on cpu
== state of the parallel form
error[A300]: the parallel form keeps no state
  hint: leave form out
== state of two lengths
error[A300]: a state needs TQ = TK, not 8 and 9
  note: each token of k and v enters the state at its query's position
== chunks of two lengths
error[A300]: the chunked form needs TQ = TK, not 8 and 9
  hint: the parallel form takes any lengths; it is chosen when form is left out
== tokens of two lengths
error[A300]: the recurrent form needs TQ = TK, not 8 and 9
  hint: the parallel form takes any lengths; it is chosen when form is left out
== no form at all
error[A300]: 'recursive' is no form
  note: forms of 'linear' with kernels: parallel, chunked, recurrent
== a form of another family
error[A200]: 'flash' has no chunked form
  note: exp(score) is no finite polynomial in s, so no state of fixed size holds it
  hint: its forms with kernels are: online
== a form without a causal mask
error[A200]: 'banded' has no chunked form
  note: the mask is not exactly causal, and a fold over tokens sees just j <= i
  hint: its forms with kernels are: parallel
== a precision of nobody
error[A300]: precision 'bf16' is neither 'fp32' nor 'tf32'
"""
EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


def refusal(name):
    variant, tensors, options = REFUSED[name]
    with pytest.raises(AttncError) as caught:
        OPS[variant](*tensors, **options)
    return caught.value.render()


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_in_these_words(name):
    assert refusal(name) == EXPECTED[name]


def test_a_form_that_nobody_knows_is_refused():
    with pytest.raises(AttncError, match="linear"):
        OPS["flash"](*qkv(), form="linear")


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
