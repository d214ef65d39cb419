"""A second derivative is refused: autograd would leave it out of a gradient, and say nothing."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.errors import InputError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op

DECLARED = """
[soft]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s - slope[h]*(i - j)"
mask = "causal"
params.slope = { shape = ["h"], grad = true }
"""
FILTER = """
[taps]
weight = "w[c, i-j]"
mask = "causal"
params.w = { shape = ["c", "T"], grad = true }
"""


@pytest.fixture(scope="module")
def op() -> Op:
    return compile_op(loads(DECLARED)["soft"])


def drawn() -> list[torch.Tensor]:
    q, k, v = (torch.randn(1, 9, 2, 16, requires_grad=True) for _ in range(3))
    return [q, k, v, torch.rand(2, requires_grad=True)]


def loss(op: Op, inputs: list[torch.Tensor]) -> torch.Tensor:
    *qkv, slope = inputs
    return op(*qkv, slope=slope).square().sum()


@pytest.mark.parametrize("place", range(4))
def test_a_gradient_penalty_is_refused(place, op):
    inputs = drawn()
    (gradient,) = torch.autograd.grad(loss(op, inputs), inputs[place], create_graph=True)
    with pytest.raises(InputError, match="'soft' has first derivatives, no second ones"):
        (loss(op, inputs) + gradient.square().sum()).backward()


def test_a_penalty_of_an_output_s_sum_is_refused_too(op):
    # nothing that comes into this backward requires a gradient; what it reads does
    inputs = drawn()
    out = op(*inputs[:3], slope=inputs[3]).sum()
    (gradient,) = torch.autograd.grad(out, inputs[0], create_graph=True)
    with pytest.raises(InputError, match="no second ones"):
        gradient.square().sum().backward()


def test_a_gradient_s_gradient_is_refused_under_transforms(op):
    inputs = [x.detach() for x in drawn()]

    def first(q: torch.Tensor) -> torch.Tensor:
        gradient = torch.func.grad(lambda x: loss(op, [x, *inputs[1:]]))(q)
        return gradient.square().sum()

    with pytest.raises(InputError, match="no second ones"):
        torch.func.grad(first)(inputs[0])


def test_first_gradients_are_the_same_with_and_without_a_graph(op):
    inputs = drawn()
    plain = torch.autograd.grad(loss(op, inputs), inputs)
    graphed = torch.autograd.grad(loss(op, inputs), inputs, create_graph=True)
    leaves = [x.detach() for x in inputs]
    transformed = torch.func.grad(lambda *xs: loss(op, list(xs)), argnums=(0, 1, 2, 3))(*leaves)
    for one, two, three in zip(plain, graphed, transformed, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_convolution_s_second_derivative_is_refused():
    op = compile_op(loads(FILTER)["taps"])
    v, w = torch.randn(1, 9, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(op(v, w=w).sum(), v, create_graph=True)
    with pytest.raises(InputError, match="'taps' has first derivatives, no second ones"):
        gradient.square().sum().backward()
