"""Weights that are any function of the score, against dense formulas in plain torch, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch.autograd import gradcheck

from attnc import Param, Variant, causal, h, i, j, s, sigmoid, where
from attnc.dsl.toml_file import loads
from attnc.errors import InputError, PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from tests.drawn_calls import calls
from tests.ops.test_gradients import function_of, hold_exactly, wide
from tests.ops.test_property import SETTINGS, hold

DECLARED = loads(
    """
[sigmoid]
feature_map = "sigmoid(s)"
score = "s + bias"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
params.bias = { shape = [], grad = true }

[rectified]
feature_map = "relu(s)"
scale = 0.25
mask = "full"
normalize = "none"

[bell]
feature_map = "exp(-s**2/2)"
score = "s - slope[h]*abs(i - j) + rel[h,i,j] + u[b,i,h]"
scale = "rsqrt(d)"
mask = "window(9, 4) | prefix(2)"
normalize = "sum"
params.slope = { shape = ["h"], grad = true }
inputs.rel = { shape = ["h", "i", "j"], grad = true }
inputs.u = { shape = ["b", "t", "h"], grad = true }

# a slope that is a number, and hides nothing by itself
[shifted]
feature_map = "s + sqrt(4)"
score = "s - gain*(i - j)"
scale = 0.5
mask = "causal"
normalize = "none"
params.gain = { shape = [], grad = true }

# a weight of positions alone, of the documents of a row
[near]
feature_map = "1/(1 + s**2)"
score = "(i - j)/4 + u[b,j,h]"
scale = 1.0
mask = "causal & documents(ids)"
normalize = "sum"
value = "v*sigmoid(v)"
inputs.u = { shape = ["b", "t", "h"], grad = true }
inputs.ids = { shape = ["b", "t"] }
"""
)


def dense(name, q, k, v, tensors):
    """The same by one matrix of weights, written without the declaration."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    q = q.transpose(1, 2)
    row = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    column = torch.arange(k.shape[2])[None, :]
    x = q @ k.transpose(-1, -2)
    match name:
        case "sigmoid":
            weight = torch.sigmoid(x / q.shape[-1] ** 0.5 + tensors["bias"])
            seen = column <= row
        case "rectified":
            weight, seen = F.relu(x * 0.25), column >= 0
        case "shifted":
            weight = x * 0.5 - tensors["gain"] * (row - column) + 2
            seen = column <= row
        case "bell":
            apart = tensors["slope"][:, None, None] * (row - column).abs()
            per_row = tensors["u"].transpose(1, 2)[:, :, row[:, 0].clamp(min=0)]
            per_row = torch.where(row[:, 0] >= 0, per_row, 0)[..., None]
            score = x / q.shape[-1] ** 0.5 - apart + tensors["rel"] + per_row
            weight = torch.exp(-(score**2) / 2)
            seen = ((row - column <= 9) & (column - row <= 4)) | (column < 2)
        case "near":
            score = (row - column) / 4 + tensors["u"].transpose(1, 2)[:, :, None]
            weight = 1 / (1 + score**2)
            ids = tensors["ids"]
            alike = ids[:, None, row.clamp(min=0), None].squeeze(-1) == ids[:, None, None]
            seen = (column <= row) & (row >= 0) & alike
            v = v * torch.sigmoid(v)
    weight = torch.where(seen, weight, 0)
    out = weight @ v
    if name in {"bell", "near"}:
        total = weight.sum(-1, keepdim=True)
        out = out / torch.where(total == 0, 1, total)
    return out.transpose(1, 2)


SHAPES = [
    Shape(2, 37, 37, 4, 2, 16, 48),
    Shape(1, 70, 133, 3, 1, 80, 20),
    Shape(2, 66, 5, 2, 2, 33, 16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DECLARED)
def test_a_weight_of_the_score_is_the_dense_formula_forward_and_backward(name, shape):
    op = compile_op(DECLARED[name])
    inputs = wide(op, shape)
    ours, leaves = function_of(op, inputs, None)
    grads = {d.name for d in (*op.variant.params, *op.variant.inputs) if d.grad}
    names = [key for key in inputs.tensors if key in grads]
    out = ours(*leaves)
    tensors = {**inputs.tensors, **dict(zip(names, leaves[3:], strict=True))}
    expected = dense(name, *leaves[:3], tensors)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    incoming = torch.randn(out.shape, dtype=out.dtype)
    # near's q and k have no part in its output
    found = torch.autograd.grad(out, leaves, incoming)
    wanted = torch.autograd.grad(expected, leaves, incoming, allow_unused=True)
    for gradient, exact in zip(found, wanted, strict=True):
        exact = torch.zeros_like(gradient) if exact is None else exact
        torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["sigmoid", "bell"])
def test_gradcheck_passes_for_a_weight_of_the_score(name):
    op = compile_op(DECLARED[name])
    call, leaves = function_of(op, wide(op, Shape(1, 21, 21, 2, 1, 16, 16)), None)
    assert gradcheck(call, leaves, fast_mode=True)


@settings(SETTINGS, max_examples=15)
@given(calls("pointwise", tokens=70))
def test_a_drawn_weight_of_the_score_is_its_formula(call):
    verdict = hold(call)
    assert verdict.passed, str(verdict)


@settings(SETTINGS, max_examples=10)
@given(calls("pointwise", tokens=50, grad=True))
def test_gradients_of_a_drawn_weight_are_those_of_its_formula(call):
    hold_exactly(compile_op(call.variant), call.shape)


def test_a_hidden_pair_weighs_nothing_even_where_its_weight_is_infinite():
    variant = Variant(
        "v", feature_map=where(s > 0, s, 0.1 * s), score=s / (i - j), scale=1, mask=j < i,
        normalize="none",
    )  # fmt: skip
    op = compile_op(variant)
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 40, 1, 16).unbind())
    out = op(q, k, v)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert out.isfinite().all()
    assert out[0, 0].eq(0).all()
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize(
    ("weight", "formula"),
    [("sqrt(relu(s))", lambda x: F.relu(x).sqrt()),
     ("tanh(relu(s)**0.5 + s)", lambda x: torch.tanh(F.relu(x).sqrt() + x)),
     ("sqrt(relu(1 - relu(s))**3)", lambda x: (F.relu(1 - F.relu(x)) ** 3).sqrt()),
     ("relu(s)*log(relu(s) + 1)", lambda x: F.relu(x) * torch.log1p(F.relu(x)))],
)  # fmt: skip
def test_what_a_relu_stops_has_no_gradient_where_its_root_has_an_infinite_one(weight, formula):
    op = compile_op(Variant("v", feature_map=weight, scale=0.3, mask=causal, normalize="none"))
    leaves = [x.double().requires_grad_() for x in torch.randn(3, 1, 40, 1, 16).unbind()]
    q, k, v = (x[:, :, 0] for x in leaves)
    expected = (formula(q @ k.mT * 0.3).tril() @ v)[:, :, None]
    incoming = torch.randn_like(expected)
    found = torch.autograd.grad(op(*leaves), leaves, incoming)
    for gradient, exact in zip(found, torch.autograd.grad(expected, leaves, incoming), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5)


def test_packed_sequences_are_calls_of_their_own():
    bias = Param("bias", shape="h")
    variant = Variant(
        "v", feature_map=sigmoid(s), score=s + bias[h] - (i - j) / 8, scale=0.3, mask=causal,
        normalize="sum",
    )  # fmt: skip
    op, starts = compile_op(variant), [0, 17, 17, 60]
    q, k, v = torch.randn(3, 1, 60, 2, 16).unbind()
    b = torch.randn(2)
    cu = torch.tensor(starts, dtype=torch.int32)
    out = op(q, k, v, bias=b, cu_seqlens_q=cu, cu_seqlens_k=cu)
    for start, end in ((0, 17), (17, 60)):
        alone = op(q[:, start:end], k[:, start:end], v[:, start:end], bias=b)
        assert torch.equal(out[:, start:end], alone)


def test_what_such_a_weight_does_not_have_is_refused_in_words():
    op = compile_op(DECLARED["sigmoid"])
    q, k, v = torch.randn(3, 1, 20, 1, 16).unbind()
    bias = torch.zeros(())
    with pytest.raises(InputError, match="'sigmoid' has no lse: it belongs to the pointwise"):
        op(q, k, v, bias=bias, return_lse=True)
    with pytest.raises(InputError, match="'sigmoid' has no state") as caught:
        op(q, k, v, bias=bias, return_state=True)
    assert "no polynomial in s, so no state of fixed size holds it" in caught.value.notes[0]
    with pytest.raises(PlanError, match="'sigmoid' has no chunked form"):
        op(q, k, v, bias=bias, form="chunked")
    with pytest.raises(PlanError, match="'rectified' has no decode") as refused:
        compile_op(DECLARED["rectified"]).init_state(1, 1, dim=16, device="cpu")
    assert "keys that come after it" in refused.value.notes[0]
