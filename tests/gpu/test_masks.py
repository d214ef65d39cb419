"""Masks that read data, and unions of clauses, compiled: forward and gradients by the formula."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.draw import Shape
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from tests.gpu.test_gradients import hold as hold_gradients
from tests.gpu.test_kernels import DTYPES
from tests.gpu.test_kernels import hold as hold_output

pytestmark = pytest.mark.gpu
DECLARED = """
[prefix_lm]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal | prefix(n[b])"
inputs.n = { shape = ["b"] }

[first_tokens]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(300) | prefix(4))"

[windows]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(w[h]) | prefix(n[b,h]))"
inputs.w = { shape = ["h"] }
inputs.n = { shape = ["b", "h"] }

[documents]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[sparse]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & blocks(table, 64)"
inputs.table = { shape = ["b", "h", "i/64", "j/64"] }

[wide_blocks]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5)"
mask = "blocks(table, 256)"
inputs.table = { shape = ["i/256", "j/256"] }

[narrow_blocks]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "window(200) & documents(ids) & blocks(table, 16)"
inputs.ids = { shape = ["b", "t"] }
inputs.table = { shape = ["h", "i/16", "j/16"] }

[sparse_state]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal & blocks(table, 64)"
normalize = "sum"
inputs.table = { shape = ["h", "i/64", "j/64"] }

[packed_state]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
normalize = "none"
log_decay = "-slope[h]"
inputs.ids = { shape = ["b", "t"] }
params.slope = { shape = ["h"], grad = true }

[prefix_state]
feature_map = "identity"
scale = "rsqrt(d)"
mask = "causal & ~prefix(n[b])"
normalize = "none"
inputs.n = { shape = ["b"] }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.parametrize(("tq", "tk"), [(63, 63), (1000, 1000), (4096, 4096), (300, 1000)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", loads(DECLARED))
def test_an_output_is_its_formula(name, dtype, tq, tk, ops):
    hold_output(ops[name], Shape(2, tq, tk, 4, 2, 64, 64), DTYPES[dtype])


@pytest.mark.parametrize(("tq", "tk"), [(63, 63), (1000, 1000), (4096, 4096), (1000, 300)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", loads(DECLARED))
def test_gradients_are_those_of_the_formula(name, dtype, tq, tk, ops):
    hold_gradients(ops[name], Shape(1, tq, tk, 4, 2, 64, 64), dtype)


@pytest.mark.parametrize("name", ["first_tokens", "documents", "sparse"])
def test_wide_heads_and_fp32_are_right_too(name, ops):
    hold_output(ops[name], Shape(1, 500, 500, 2, 2, 128, 128), torch.bfloat16)
    hold_output(ops[name], Shape(1, 300, 300, 2, 2, 64, 64), torch.float32)


@pytest.mark.parametrize("name", ["first_tokens", "documents", "sparse"])
def test_two_runs_agree_bit_for_bit(name, ops):
    q, k, v = (torch.randn(2, 2000, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    given = {}
    if name == "documents":
        given["ids"] = torch.arange(2000, device="cuda").expand(2, -1) // 300
    if name == "sparse":
        given["table"] = torch.randint(0, 2, (2, 4, 32, 32), device="cuda")
    outs = [ops[name](*leaves, **given) for _ in range(3)]
    do = torch.randn_like(outs[0])
    grads = [torch.autograd.grad(out, leaves, do) for out in outs]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert all(torch.equal(a, b) for a, b in zip(grads[0], grads[2], strict=True))
