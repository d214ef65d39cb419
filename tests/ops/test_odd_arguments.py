"""Arguments of a wrong kind: each is named, with what to pass, and none ends inside."""

from __future__ import annotations

import pytest
import torch

from attnc import Variant
from attnc.errors import AttncError, InputError, PlanError
from attnc.ops.op import compile as compile_op
from tests.ops.convolutions import CONVOLUTIONS, LEARNED

CAUSAL = Variant("causal", feature_map="softmax", scale="rsqrt(d)", mask="causal")


@pytest.mark.parametrize("device", [torch.device("cpu"), "cuda", 0])
def test_a_device_that_nobody_plans_for_is_named(device):
    with pytest.raises(PlanError, match="unknown device") as caught:
        compile_op(CAUSAL, device=device)
    assert "an op that is given none plans for the device of each call's" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 8.5}, "capacity is 8.5, no number of tokens"),
        ({"capacity": "8"}, "capacity is '8', no number of tokens"),
        ({"capacity": 8, "page_size": 2.0}, "page_size is 2.0, no number of tokens"),
    ],
)
def test_a_cache_is_so_many_whole_tokens(options, message):
    with pytest.raises(InputError, match=message):
        compile_op(CAUSAL).init_state(1, 2, dim=16, dtype=torch.float32, device="cpu", **options)


def filtered(**options):
    """A call of a convolution without gates."""
    w = options.pop("w", torch.ones(3, 5))
    return compile_op(CONVOLUTIONS["both_sides"])(torch.zeros(1, 9, 3), w=w, **options)


def attended(*, nested=False, **options):
    q = torch.zeros(1, 9, 1, 16)
    tensors = [torch.nested.as_nested_tensor([q[0]]) if nested else q] * 3
    return compile_op(CAUSAL)(*tensors, **options)


@pytest.mark.parametrize("call", [filtered, attended])
@pytest.mark.parametrize("precision", [["fp32"], {}, None, 32])
def test_a_precision_that_is_no_name_is_shown(call, precision):
    with pytest.raises(InputError) as caught:
        call(precision=precision)
    assert caught.value.message == f"precision {precision!r} is neither 'fp32' nor 'tf32'"


@pytest.mark.parametrize("training", ["yes", None, 1, torch.tensor(True)])
def test_training_is_true_or_false_whether_or_not_taps_are_dropped(training):
    for name in ("both_sides", "sparse"):
        op = compile_op(CONVOLUTIONS[name])
        with pytest.raises(InputError) as caught:
            op(torch.zeros(1, 9, 3), w=torch.ones(3, 5), training=training)
        assert caught.value.message == f"training is {training!r}, neither True nor False"
        assert "module.training" in caught.value.hints[0]


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, None, "9", torch.tensor(1.5)])
def test_factors_are_made_for_a_number_of_tokens(tokens):
    with pytest.raises(InputError) as caught:
        compile_op(LEARNED).init_factors(tokens)
    assert caught.value.message == f"tokens is {tokens!r}, no number of at least 1"
    assert caught.value.hints


def test_integers_of_other_kinds_are_numbers_of_tokens():
    op = compile_op(LEARNED)
    expected = op.init_factors(300)
    for name, factor in op.init_factors(torch.tensor(300)).items():
        assert torch.equal(factor, expected[name])


def test_a_complex_factor_is_told_how_to_become_two_real_ones():
    op = compile_op(CONVOLUTIONS["both_sides"])
    with pytest.raises(InputError, match=r"'w' is torch.complex64, it must be real") as caught:
        op(torch.zeros(1, 9, 3), w=torch.ones(3, 5) + 0j)
    assert caught.value.hints == ("declare both parts, and pass w.real and w.imag",)
    factors = compile_op(LEARNED).init_factors(9)
    gates = {name: torch.ones(1, 9, 3) for name in "ag"}
    given = {"w": torch.ones(3, 5), "D": torch.ones(3), **gates, **factors}
    with pytest.raises(InputError) as caught:
        compile_op(LEARNED)(torch.zeros(1, 9, 3), **given | {"F1": torch.complex(*factors["F1"])})
    assert caught.value.hints == ("axis z is both parts: torch.stack([F1.real, F1.imag])",)


def test_a_tensor_on_another_device_is_held_against_one_of_the_call():
    with pytest.raises(InputError) as caught:
        filtered(w=torch.ones(3, 5, device="meta"))
    assert caught.value.message == "'w' is on meta, v is on cpu"


@pytest.mark.parametrize("name", ["cu_seqlens", "cu_seqlens_q"])
def test_packed_sequences_of_a_convolution_are_refused_with_what_to_do(name):
    with pytest.raises(InputError, match="takes no packed sequences: it is a conv") as caught:
        filtered(**{name: torch.tensor([0, 9], dtype=torch.int32)})
    assert "pad them with zeros at the end" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cu_seqlens", "starts of sequences are cu_seqlens_q=... and cu_seqlens_k=..."),
        ("max_seqlen_q", "leave it out: kernels read lengths from cu_seqlens_q"),
    ],
)
def test_what_other_libraries_call_packed_sequences_is_known(name, hint):
    with pytest.raises(InputError, match=f"takes no argument '{name}'") as caught:
        attended(**{name: 9})
    assert hint in caught.value.hints[0]


def test_nested_tensors_are_refused_with_what_to_pass():
    with pytest.raises(InputError, match="q is a nested tensor") as caught:
        attended(nested=True)
    assert caught.value.hints == ("pass q.values()[None], with its offsets as cu_seqlens",)
    v = torch.nested.as_nested_tensor([torch.zeros(4, 3), torch.zeros(9, 3)])
    with pytest.raises(InputError, match="v is a nested tensor") as caught:
        compile_op(CONVOLUTIONS["both_sides"])(v, w=torch.ones(3, 5))
    assert "pad_sequence(v.unbind(), batch_first=True)" in caught.value.hints[0]


def test_a_backend_that_is_no_name_is_shown():
    with pytest.raises(AttncError, match=r"unknown backend \['gluon'\]"):
        compile_op(CAUSAL, backend=["gluon"])


def test_deterministic_is_true_or_false():
    with pytest.raises(AttncError, match="deterministic is 'no', neither True nor False"):
        compile_op(CAUSAL, deterministic="no")


@pytest.mark.parametrize("variant", [CAUSAL, CONVOLUTIONS["gated"]], ids=lambda v: v.name)
@pytest.mark.parametrize("form", ["", "chunk", 3])
def test_a_name_that_is_no_form_is_refused_with_those_that_are(variant, form):
    with pytest.raises(InputError, match=f"{form!r} is no form") as caught:
        compile_op(variant).plan(form=form)
    assert caught.value.notes[0].endswith("online, parallel, chunked, recurrent")


@pytest.mark.parametrize("variant", [CAUSAL, CONVOLUTIONS["gated"]], ids=lambda v: v.name)
@pytest.mark.parametrize("device", ["graphics", 1.5, None])
def test_a_state_on_no_device_is_refused(variant, device):
    op = compile_op(variant)
    sizes = {"taps": 5} if variant is not CAUSAL else {"dim": 16, "capacity": 9}
    with pytest.raises(InputError) as caught:
        op.init_state(1, 2, device=device, **sizes)
    assert caught.value.message == f"no state on {device!r}, which is no device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_state_on_a_device_that_is_not_here_says_so():
    with pytest.raises(InputError, match="no state on 'cuda': torch finds no such device here"):
        compile_op(CAUSAL).init_state(1, 2, dim=16, capacity=9)
