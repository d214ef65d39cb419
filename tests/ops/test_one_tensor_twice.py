"""One tensor in several places of a call, which autograd, Dynamo and the operators all see once."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op

SHARED = """
[attention]
feature_map = "identity"
scale = 0.25
mask = "causal"
normalize = "none"
log_decay = "-abs(a[h])"
value = "w[h] * v"
params.a = { shape = ["h"], grad = true }
params.w = { shape = ["h"], grad = true }

[filter]
weight = "w[c, i-j]"
mask = "causal"
pregate = "a[b,t,c]"
postgate = "g[b,t,c]"
params.w = { shape = ["c", "T"], grad = true }
inputs.a = { shape = ["b", "t", "c"], grad = true }
inputs.g = { shape = ["b", "t", "c"], grad = true }
"""
VARIANTS = loads(SHARED)


def attention(op, x, kv, both):
    return op(x, kv, kv, a=both, w=both)


def filtered(op, x, kv, both):
    return op(x, w=both, a=x, g=x)


CASES = {
    "attention": (attention, [(1, 19, 2, 16), (1, 19, 2, 16), (2,)]),
    "filter": (filtered, [(1, 19, 3), (1,), (3, 19)]),
}


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("name", CASES)
def test_a_tensor_given_twice_gets_the_sum_of_both_gradients(name, traced):
    call, shapes = CASES[name]
    op = compile_op(VARIANTS[name])
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    copies = [x.detach().double().requires_grad_() for x in leaves]
    run = torch.compile(call, fullgraph=True, backend="aot_eager") if traced else call
    out = run(op, *leaves)
    expected = call(op.reference, *copies)
    assert (out - expected).norm() < 1e-5 * expected.norm()
    incoming = torch.randn_like(expected)
    found = torch.autograd.grad(out, leaves, incoming.float(), allow_unused=True)
    wanted = torch.autograd.grad(expected, copies, incoming, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).norm() < 1e-4 * other.norm()
