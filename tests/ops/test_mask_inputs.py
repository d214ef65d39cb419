"""Masks whose bounds are inputs, and unions of clauses: forward and backward by the formula."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc.dsl import loads
from attnc.dsl.toml_file import dumps
from attnc.errors import DeclarationError, FieldError, InputError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import hold_exactly

DECLARED = """
[prefix_lm]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal | prefix(n[b])"
inputs.n = { shape = ["b"] }

[first_tokens]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(20) | prefix(4))"

[windows]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(w[h]) | prefix(n[b,h]))"
params.w = { shape = ["h"] }
inputs.n = { shape = ["b", "h"] }

[shared]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal & ~prefix(n[hkv]) & window(m)"
normalize = "none"
log_decay = "-slope[h]"
params.slope = { shape = ["h"], grad = true }
params.m = { shape = [] }
inputs.n = { shape = ["hkv"] }

[both_sides]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal | prefix(n[b])"
normalize = "sum"
inputs.n = { shape = ["b"] }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.rest(keep=4)
@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(("tq", "tk", "hkv"), [(150, 150, 2), (30, 170, 4), (130, 30, 1)])
def test_gradients_are_those_of_the_formula(name, tq, tk, hkv, ops):
    hold_exactly(ops[name], Shape(2, tq, tk, 4, hkv, 16, 32))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.float32])
def test_a_prefix_lm_sees_each_prefix_whole(kind, ops):
    q, k, v = (torch.randn(3, 130, 2, 16) for _ in range(3))
    lengths = [0, 37, 130]
    out = ops["prefix_lm"](q, k, v, n=torch.tensor(lengths).to(kind))
    for b, n in enumerate(lengths):
        number = attnc.Variant(
            "number", feature_map="softmax", scale="rsqrt(d)", mask=f"causal | prefix({n})"
        )
        alone = compile_op(number)(*(x[b : b + 1] for x in (q, k, v)))
        torch.testing.assert_close(out[b : b + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_bound_that_the_mask_swallows_is_still_given_in_whole_numbers():
    n = attnc.Input("n", shape="b")
    mask = attnc.full | attnc.prefix(n["b"])
    swallowed = attnc.Variant("swallowed", feature_map="softmax", scale=1.0, mask=mask)
    everything = attnc.Variant("everything", feature_map="softmax", scale=1.0, mask="full")
    q, k, v = (torch.randn(2, 33, 1, 16) for _ in range(3))
    out = compile_op(swallowed)(q, k, v, n=torch.tensor([3, 30]))
    assert torch.equal(out, compile_op(everything)(q, k, v))


def test_keys_between_the_first_tokens_and_the_window_are_never_read(ops):
    """NaN in a hidden tile would show: 0 times NaN is NaN."""
    q, k, v = (torch.randn(1, 400, 1, 16) for _ in range(3))
    out = ops["first_tokens"](q, k, v)
    for x in (k, v):
        x[:, 128:256] = float("nan")
    again = ops["first_tokens"](q, k, v)
    assert torch.equal(out[:, 384:], again[:, 384:])


def test_a_bound_is_declared_in_python_too():
    n = attnc.Input("n", shape="b")
    mine = attnc.Variant(
        "prefix_lm",
        feature_map="softmax",
        scale="rsqrt(d)",
        mask=attnc.causal | attnc.prefix(n["b"]),
    )
    assert mine == loads(DECLARED)["prefix_lm"]


def test_bounds_survive_a_round_trip_and_are_part_of_the_meaning():
    found = loads(DECLARED)
    for name, variant in found.items():
        assert loads(dumps(variant))[name] == variant
        assert variant.warnings() == ()
    number = DECLARED.replace("prefix(n[b])", "prefix(4)").replace(
        'inputs.n = { shape = ["b"] }', ""
    )
    assert found["prefix_lm"].digest != loads(number)["prefix_lm"].digest


def test_a_bound_varies_by_batch_and_head_alone():
    text = DECLARED.replace("prefix(n[b])", "prefix(n[b,j])").replace(
        'inputs.n = { shape = ["b"] }', 'inputs.n = { shape = ["b", "t"] }'
    )
    with pytest.raises(DeclarationError) as caught:
        loads(text)
    assert caught.value.message == "prefix takes whole numbers of at least 0: 'prefix(n[b, j])'"
    assert caught.value.notes == ("or a declared tensor with a number for each b, h or hkv",)


def test_a_bound_has_no_gradient():
    text = DECLARED.replace(
        'inputs.n = { shape = ["b"] }', 'inputs.n = { shape = ["b"], grad = true }'
    )
    with pytest.raises(FieldError) as caught:
        loads(text)
    assert caught.value.message == "'n' asks for a gradient and has none"
    assert caught.value.notes == ("it says which pairs are visible, and no more",)


def test_a_bound_of_another_shape_is_refused(ops):
    q, k, v = (torch.randn(2, 20, 1, 16) for _ in range(3))
    with pytest.raises(InputError) as caught:
        ops["prefix_lm"](q, k, v, n=torch.tensor([3]))
    assert caught.value.message == "'n' has shape [1], expected [2]"
