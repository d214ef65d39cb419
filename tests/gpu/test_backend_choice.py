"""What a call runs on an sm_90 card unasked: gluon where it was measured faster, triton else."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt, reference
from attnc.ops.verification.criterion import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="gluon's kernels are made for sm_90",
    ),
]
CAUSAL = loads('[causal]\nfeature_map = "softmax"\nscale = "rsqrt(d)"\nmask = "causal"')["causal"]
# enough work for the rule; heads differ, so that a head that is read for another one shows
BATCH, TOKENS, HQ, HKV, DIM = 4, 2048, 16, 4, 128


def make(heads: int, *, tokens: int = TOKENS, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + heads)
    shape = (BATCH, tokens, heads, dim)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)


def hold(op: Op, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Run an op, held to the formula at two heads."""
    out = op(q, k, v)
    group = q.shape[2] // k.shape[2]
    for b, h in ((0, 0), (BATCH - 1, q.shape[2] - 1)):
        rows = q[b : b + 1, :, h : h + 1]
        keys, values = (x[b : b + 1, :, h // group : h // group + 1] for x in (k, v))
        ref = reference(CAUSAL, rows, keys, values, {})
        verdict = check(out[b : b + 1, :, h : h + 1], ref, pt(CAUSAL, rows, keys, values, {}))
        assert verdict.passed and verdict.zeros_fail, verdict
    return out


def backends(op: Op) -> set[str]:
    """Of what has run."""
    return {built.plan.backend for built in op.built_plans.by_kind.values() if built.run}


def test_a_long_call_of_wide_heads_runs_gluon():
    op = compile_op(CAUSAL)
    q, k, v = make(HQ), make(HKV), make(HKV, seed=1)
    for _ in range(3):  # the first call, the recorded one, the one after
        hold(op, q, k, v)
    assert backends(op) == {"gluon"}


def test_a_short_call_runs_triton():
    op = compile_op(CAUSAL)
    hold(op, make(HQ, tokens=256), make(HKV, tokens=256), make(HKV, tokens=256, seed=1))
    assert backends(op) == {"triton"}


def odd(how: str) -> torch.Tensor:
    if how == "channels apart":
        return make(HKV, dim=2 * DIM)[..., ::2]
    if how == "rows of odd bytes":
        return make(HKV, dim=DIM + 1)[..., :DIM]
    if how == "expanded heads":
        return make(1).expand(-1, -1, HKV, -1)
    flat = torch.randn(BATCH * TOKENS * HKV * DIM + 1, device="cuda", dtype=torch.bfloat16)
    return flat[1:].view(BATCH, TOKENS, HKV, DIM)


@pytest.mark.parametrize(
    "how", ["channels apart", "rows of odd bytes", "expanded heads", "an odd address"]
)
def test_tensors_without_descriptors_run_triton_before_and_after_those_with(how):
    """An address is no part of what tells calls apart, so the launcher has to look at it."""
    op = compile_op(CAUSAL)
    q, k, v = make(HQ), make(HKV), make(HKV, seed=1)
    for keys in (odd(how), k, odd(how), k, odd(how), k):
        hold(op, q, keys, v)
    assert backends(op) == {"gluon", "triton"}


def test_aligned_calls_come_first_and_odd_addresses_after():
    op = compile_op(CAUSAL)
    q, k, v = make(HQ), make(HKV), make(HKV, seed=1)
    for keys in (k, k, odd("an odd address"), k):
        hold(op, q, keys, v)
    assert backends(op) == {"gluon", "triton"}


def test_gradients_and_lse_pass_through_a_call_that_runs_gluon():
    # a name of its own: autograd finds the first op of a name and a meaning
    text = '[graded]\nfeature_map = "softmax"\nscale = "rsqrt(d)"\nmask = "causal"'
    causal = loads(text)["graded"]
    op, portable = compile_op(causal), compile_op(causal, backend="triton")
    qkv = make(HQ), make(HKV), make(HKV, seed=1)
    wanted = torch.randn_like(qkv[0])
    found = []
    for each in (op, portable):
        leaves = [x.detach().clone().requires_grad_() for x in qkv]
        out, lse = each(*leaves, return_lse=True)
        found.append(torch.autograd.grad((out * wanted).sum() + lse.sum(), leaves))
    assert backends(op) == {"gluon"} and backends(portable) == {"triton"}
    for ours, other in zip(*found, strict=True):
        assert float((ours - other).abs().max()) <= 0.02 * float(other.abs().max())


def test_torch_compile_and_a_graph_run_what_an_eager_call_runs():
    op = compile_op(CAUSAL)
    q, k, v = make(HQ), make(HKV), make(HKV, seed=1)
    eager = hold(op, q, k, v)
    assert torch.equal(torch.compile(lambda *x: op(*x))(q, k, v), eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(q, k, v)
    out.zero_()
    graph.replay()
    assert torch.equal(out, eager)
