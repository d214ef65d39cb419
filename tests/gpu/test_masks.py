"""Masks that read data, and unions of clauses, compiled: forward and gradients by the formula."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
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

[rates]
feature_map = "identity"
scale = "rsqrt(d)"
mask = "causal & window(500)"
normalize = "none"
log_decay = "-exp(a[h])*softplus(g[b,t,h])"
params.a = { shape = ["h"], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

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


@pytest.mark.parametrize(("tq", "tk"), [(63, 63), (4096, 4096), (300, 1000)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", loads(DECLARED))
def test_an_output_is_its_formula(name, dtype, tq, tk, ops):
    hold_output(ops[name], Shape(2, tq, tk, 4, 2, 64, 64), DTYPES[dtype])


@pytest.mark.parametrize(("tq", "tk"), [(63, 63), (4096, 4096), (1000, 300)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", loads(DECLARED))
def test_gradients_are_those_of_the_formula(name, dtype, tq, tk, ops):
    hold_gradients(ops[name], Shape(1, tq, tk, 4, 2, 64, 64), dtype)


@pytest.mark.parametrize("tokens", [63, 4000])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["first_tokens", "prefix_lm", "prefix_state", "rates"])
def test_packed_sequences_are_their_formula(name, dtype, tokens, ops):
    op = ops[name].over_sequences()
    hold_output(op, Shape(1, tokens, tokens, 4, 2, 64, 64, sequences=5), DTYPES[dtype])
    hold_gradients(op, Shape(1, tokens, tokens + 200, 4, 2, 64, 64, sequences=5), dtype)


@pytest.mark.parametrize("name", ["first_tokens", "prefix_state"])
def test_a_packed_sequence_is_bit_for_bit_what_it_is_alone(name, ops):
    op, lengths = ops[name], (700, 0, 64, 1, 1283)
    cu = torch.tensor([sum(lengths[:n]) for n in range(6)], dtype=torch.int32, device="cuda")
    made = [torch.randn(1, sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16)
            for _ in range(4)]  # fmt: skip
    leaves, do = [x.requires_grad_() for x in made[:3]], made[3]
    given = {} if name == "first_tokens" else {"n": torch.full((5,), 9.0, device="cuda")}
    whole = op(*leaves, cu_seqlens_q=cu, cu_seqlens_k=cu, **given)
    grads = torch.autograd.grad(whole, leaves, do)
    for n, length in enumerate(lengths):
        if not length:
            continue
        part = slice(int(cu[n]), int(cu[n + 1]))
        mine = [x[:, part].detach().requires_grad_() for x in leaves]
        alone = op(*mine, **{key: x[:1] for key, x in given.items()})
        assert torch.equal(whole[:, part], alone)
        found = torch.autograd.grad(alone, mine, do[:, part])
        assert all(torch.equal(a[:, part], b) for a, b in zip(grads, found, strict=True))


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
