"""Packed sequences in the forms that fold tokens: each starts its own state, chunks and segments.

What a packed call gives is held bit for bit against calls of each sequence, gradients and states
too, and against the fp64 reference; the lengths give sequences of no, one and several segments.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from attnc.codegen.device import DEVICES
from attnc.dsl import loads
from attnc.errors import InputError
from attnc.ops.built_plans import BuiltPlans
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import function_of, hold_exactly, wide
from tests.packed import hold_bits, packed_inputs, starts

DECLARED = """
[steady]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal"
normalize = "sum"
log_decay = "-slope[h]"
params.slope = { shape = ["h"] }
chunk = 16

[taylor]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal"
normalize = "sum"
chunk = 16

[learned]
feature_map = "taylor(1)"
scale = "rsqrt(d)"
mask = "causal"
normalize = "sum"
log_decay = "-slope[h]"
params.slope = { shape = ["h"], grad = true }
chunk = 16

[gated]
feature_map = "identity"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
log_decay = "-exp(a[h])*softplus(g[b,t,h])"
value = "dt[b,t,h]*v + e[b,t,c]"
params.a = { shape = ["h"], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }
inputs.dt = { shape = ["b", "t", "h"], grad = true }
inputs.e = { shape = ["b", "t", "c"], grad = true }
chunk = 16

[channels]
feature_map = "identity"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
log_decay = "-softplus(-g[b,t,h,k])/16 - rate"
params.rate = { shape = [], grad = true }
inputs.g = { shape = ["b", "t", "h", "k"], grad = true }
chunk = 16

[grouped]
feature_map = "elu(x) + 1"
scale = 0.5
log_decay = "-exp(a[h,k])*softplus(g[b,t,hkv,k])"
value = "gain[c]*v"
mask = "causal"
normalize = "sum"
params.a = { shape = ["h", "k"], grad = true }
params.gain = { shape = ["c"], grad = true }
inputs.g = { shape = ["b", "t", "hkv", "k"], grad = true }
chunk = 16
"""
VARIANTS = loads(DECLARED)
# every query of a sequence sees all of its keys: one sum serves them, and there is no state
WHOLE = loads(
    """
[whole]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "full"
normalize = "sum"
value = "dt[b,t,h]*v"
inputs.dt = { shape = ["b", "t", "h"], grad = true }
chunk = 16

[powers]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "full"
normalize = "none"
chunk = 16
"""
)
LENGTHS = (0, 63, 1, 0, 130, 0)
SIZES = Shape(1, 0, 0, 2, 1, 16, 16)


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in (VARIANTS | WHOLE).items()}


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize(
    ("dtype", "state"), [(torch.float32, False), (torch.bfloat16, True)],
    ids=["from_zero", "with_states"],
)  # fmt: skip
@pytest.mark.parametrize("name", VARIANTS)
def test_chunks_of_packed_sequences_are_bit_for_bit_what_they_are_alone(name, dtype, state, ops):
    inputs = packed_inputs(ops[name], LENGTHS, SIZES, dtype)
    hold_bits(ops[name], LENGTHS, inputs, "chunked", state=state)


@pytest.mark.rest
def test_slots_are_enough_where_a_device_holds_few_segments(ops, monkeypatch):
    """Slots lie closer then: a sequence has as many as it may have segments, and no more."""
    few = replace(DEVICES["h100"], sms=3)
    op = ops["steady"]
    for each in (op, op.over_sequences()):
        monkeypatch.setattr(each, "built_plans", BuiltPlans(each.request, few))
    lengths = (260, 20, 130, 0)
    inputs = packed_inputs(op, lengths, SIZES, torch.float32)
    hold_bits(op, lengths, inputs, "chunked", state=True)
    text = next(iter(op.over_sequences().built_plans.by_kind.values())).path.read_text()
    assert "MS = max(1, 6 // " in text


@pytest.mark.parametrize("name", WHOLE)
def test_sums_over_all_keys_of_packed_sequences_are_what_they_are_alone(name, ops):
    """Bit for bit where the call alone has one segment, as each packed sequence has."""
    lengths = (0, 63, 1, 0, 100)
    inputs = packed_inputs(ops[name], lengths, SIZES, torch.float32)
    hold_bits(ops[name], lengths, inputs, "chunked", state=False)
    shape = Shape(1, 150, 150, 2, 1, 16, 16, sequences=4)
    hold_exactly(ops[name].over_sequences(), shape, "chunked")


@pytest.mark.parametrize("name", ["learned", "grouped"])
def test_packed_sequences_folded_token_by_token_are_what_they_are_alone(name, ops):
    lengths = (0, 5, 1, 0, 17)
    inputs = packed_inputs(ops[name], lengths, SIZES, torch.float32)
    hold_bits(ops[name], lengths, inputs, "recurrent", state=True)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("state", [False, True], ids=["from_zero", "with_states"])
def test_gradients_of_chunks_are_those_of_each_sequence(name, state, ops):
    shape = Shape(1, 150, 150, 2, 1, 16, 16, sequences=4)
    hold_exactly(ops[name].over_sequences(), shape, "chunked", state=state)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", ["taylor", "gated", "channels", "whole"])
def test_gradcheck_passes_for_packed_chunks(name, ops):
    packed = ops[name].over_sequences()
    inputs = wide(packed, Shape(1, 20, 20, 2, 1, 16, 16, sequences=3))
    call, leaves = function_of(packed, inputs, "chunked")
    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["channels", "grouped"])
@pytest.mark.parametrize(("tq", "tk"), [(60, 60), (30, 50), (50, 30)])
def test_decays_a_channel_pack_pair_by_pair_too(name, tq, tk, ops):
    shape = Shape(1, tq, tk, 2, 1, 16, 16, sequences=4)
    hold_exactly(ops[name].over_sequences(), shape, "parallel")


def test_one_tensor_of_starts_takes_the_chunked_form_and_two_the_parallel_one(ops, monkeypatch):
    """Where sequences start is data: two tensors may hold other lengths, and nobody reads them."""
    packed = ops["steady"].over_sequences()
    asked: list[str | None] = []
    forward = Op.forward

    def noted(self, q, k, v, tensors, initial_state, form, precision):
        asked.append(form)
        return forward(self, q, k, v, tensors, initial_state, form, precision)

    monkeypatch.setattr(Op, "forward", noted)
    q, k, v = (torch.randn(1, 10, 2, 16) for _ in range(3))
    given = {"slope": torch.tensor([0.1, 0.2])}
    cu, other = starts((4, 6)), starts((4, 6))
    chunked = packed(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, **given)
    parallel = packed(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=other, **given)
    assert asked == [None, "parallel"]
    torch.testing.assert_close(chunked, parallel)
    # other lengths of the same total are another call
    keys = starts((5, 5))
    uneven = packed(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=keys, **given)
    ref = packed.reference(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=keys, **given)
    torch.testing.assert_close(uneven, ref.float(), rtol=1e-5, atol=1e-5)


def test_a_compiled_packed_call_is_the_eager_one(ops):
    inputs = packed_inputs(ops["steady"], (5, 0, 20), SIZES, torch.float32)
    given = inputs.tensors
    leaves = [x.requires_grad_() for x in inputs.qkv]

    def call(q, k, v, cu):
        starts = {"cu_seqlens_q": cu, "cu_seqlens_k": cu}
        return ops["steady"].over_sequences()(q, k, v, **starts, slope=given["slope"])

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    outs = [run(*leaves, given["cu_seqlens_k"]) for run in (call, compiled)]
    first, second = ([x, *torch.autograd.grad(x.square().sum(), leaves)] for x in outs)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("options", [{"form": "chunked"}, {"return_state": True}])
def test_a_fold_over_sequences_with_more_keys_than_queries_is_refused(options, ops):
    q, k, v = (torch.randn(1, 10, 2, 16) for _ in range(3))
    given = {"cu_seqlens_q": starts((4, 6)), "slope": torch.zeros(2), **options}
    same = ops["steady"](q, k, v, cu_seqlens_k=starts((4, 6)), **given)
    assert (same[0] if "return_state" in options else same).isfinite().all()
    with pytest.raises(InputError) as caught:
        ops["steady"](q, k, v, cu_seqlens_k=starts((5, 5)), **given)
    assert caught.value.message == (
        "cu_seqlens_q and cu_seqlens_k differ, and a fold over tokens takes each with its query"
    )


def test_a_state_of_another_number_of_sequences_is_refused(ops):
    q, k, v = (torch.randn(1, 10, 2, 16) for _ in range(3))
    cu = starts((4, 0, 6))
    with pytest.raises(InputError) as caught:
        ops["steady"](
            q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, slope=torch.zeros(2),
            initial_state=torch.zeros(1, 2, 16, 17),
        )  # fmt: skip
    assert caught.value.message == (
        "initial_state has shape [1, 2, 16, 17], expected [3, 2, 16, 17]"
    )


def test_other_sequences_and_their_states_are_never_read(ops):
    lengths = (130, 63)
    inputs = packed_inputs(ops["gated"], lengths, SIZES, torch.float32)
    packed = ops["gated"].over_sequences()
    initial = torch.randn(packed.state_shape(2, 2, 1, 16, 16))
    options = {"form": "chunked", "initial_state": initial, "return_state": True}
    out, final = packed(*inputs.qkv, **options, **inputs.tensors)
    for x in inputs.qkv:
        x[:, 130:] = float("nan")
    initial[1] = float("nan")
    again, last = packed(*inputs.qkv, **options, **inputs.tensors)
    assert torch.equal(out[:, :130], again[:, :130]) and again[:, 130:].isnan().all()
    assert torch.equal(final[0], last[0]) and last[1].isnan().all()
