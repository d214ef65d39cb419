"""`torch.vmap` over an op is a call for each entry, alone and under derivatives of `torch.func`."""

from __future__ import annotations

import pytest
import torch

from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped

ENTRIES = 3


@pytest.fixture(scope="module")
def alibi():
    return compile_op(shipped()["flash_alibi"])


def one_by_one(call, *batched):
    return [torch.stack(found) for found in zip(*map(call, *batched), strict=True)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all() and one.abs().sum() > 0
        assert torch.equal(one, other)


def test_a_call_is_batched_over_any_axis_and_over_no_axis(alibi):
    q, k, v = (torch.randn(ENTRIES, 1, 19, 2, 16) for _ in range(3))
    slope = torch.rand(2)

    def call(q, k, v):
        return alibi(q, k, v, slope=slope, return_lse=True)

    expected = one_by_one(call, q, k, v)
    assert_same(torch.vmap(call)(q, k, v), expected)
    moved = torch.vmap(call, in_dims=(1, 0, 3), out_dims=(2, 1))(
        q.transpose(0, 1), k, v.movedim(0, 3)
    )
    assert_same((moved[0].movedim(2, 0), moved[1].movedim(1, 0)), expected)
    shared = torch.vmap(lambda q: call(q, k[0], v[0]))(q)
    assert_same(shared, one_by_one(lambda q: call(q, k[0], v[0]), q))


def test_a_declared_tensor_alone_is_batched(alibi):
    q, k, v = (torch.randn(2, 19, 2, 16) for _ in range(3))
    slopes = torch.rand(ENTRIES, 2)
    found = torch.vmap(lambda slope: alibi(q, k, v, slope=slope))(slopes)
    assert_same([found], one_by_one(lambda slope: [alibi(q, k, v, slope=slope)], slopes))
    grad = torch.func.grad(lambda slope: alibi(q, k, v, slope=slope).square().sum())
    assert_same([torch.vmap(grad)(slopes)], one_by_one(lambda x: [grad(x)], slopes))


def test_gradients_of_each_entry_are_those_of_its_own_call(alibi):
    q, k, v = (torch.randn(ENTRIES, 1, 19, 2, 16) for _ in range(3))
    slope = torch.rand(2)
    grad = torch.func.grad(
        lambda q, k, v, slope: alibi(q, k, v, slope=slope).square().sum(), argnums=(0, 1, 2, 3)
    )
    found = torch.vmap(grad, in_dims=(0, 0, 0, None))(q, k, v, slope)
    assert_same(found, one_by_one(lambda *qkv: grad(*qkv, slope), q, k, v))


def test_a_jacobian_is_made_of_batched_backwards(alibi):
    q = torch.randn(1, 7, 2, 16)
    slope = torch.rand(2)
    jacobian = torch.func.jacrev(lambda q: alibi(q, q, q, slope=slope)[0, 5, 1, :3])(q)
    assert jacobian.shape == (3, 1, 7, 2, 16)
    for column in range(3):
        wanted = q.clone().requires_grad_()
        alibi(wanted, wanted, wanted, slope=slope)[0, 5, 1, column].backward()
        torch.testing.assert_close(jacobian[column], wanted.grad)


def test_a_state_is_batched_and_comes_back_batched():
    op = compile_op(shipped()["lightning"])
    q = torch.randn(ENTRIES, 1, 19, 2, 16)
    states = torch.randn(ENTRIES, *op.state_shape(1, 2, 2, 16, 16))
    slope = torch.rand(2)

    def call(q, state):
        return op(q, q, q, slope=slope, initial_state=state, return_state=True)

    assert_same(torch.vmap(call)(q, states), one_by_one(call, q, states))
    grad = torch.func.grad(lambda q, state: call(q, state)[0].square().sum(), argnums=(0, 1))
    assert_same(torch.vmap(grad)(q, states), one_by_one(grad, q, states))


def test_a_convolution_is_batched_with_its_gradients():
    op = compile_op(shipped()["short_conv"])
    v = torch.randn(ENTRIES, 2, 23, 4)
    weights = torch.randn(ENTRIES, 4, 4)

    def call(v, w):
        return [op(v, w=w)]

    assert_same(torch.vmap(call)(v, weights), one_by_one(call, v, weights))
    found = torch.vmap(lambda w: call(v[0], w))(weights)
    assert_same(found, one_by_one(lambda w: call(v[0], w), weights))
    grad = torch.func.grad(lambda v, w: call(v, w)[0].square().sum(), argnums=(0, 1))
    assert_same(torch.vmap(grad)(v, weights), one_by_one(grad, v, weights))
