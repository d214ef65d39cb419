"""Mistakes in a call of an op, and what is said of each."""

from __future__ import annotations

import pytest
import torch

from attnc.errors import AttncError
from tests.ops.test_op import OPS, qkv, tensor


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
    "no keys": ("flash", qkv(tk=0), {}),
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
    "lse of a band": ("banded", qkv(), {"return_lse": True}),
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
  hint: skip the call: its output is empty too
== no keys
error[A300]: empty input: q is [1, 8, 2, 16], v is [1, 0, 2, 16]
  hint: skip the call: rows that see no key are 0
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
  hint: pass slope.float()
== a param on another device
error[A300]: 'slope' is on meta, q is on cpu
== grad of a param
error[A300]: param 'slope' of 'alibi' requires grad, and is declared without
  note: a gradient that nobody asked for costs time at every step
  hint: declare params.slope = { shape = ["h"], grad = true }, or detach the tensor
== lse of a state
error[A300]: 'lightning' has no lse: it belongs to the state family
  hint: return_state=True gives what a later call continues from
== lse of a band
error[A300]: 'banded' has no lse: it belongs to the state family
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
  note: those of attention are online, parallel, chunked, recurrent
  note: and those of a convolution toeplitz, fft, three_pass, butterfly
  hint: op.forms() names those of an op, and None takes the planner's choice
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
