"""Compiled decode: steps against the formula, and a step in a CUDA graph against eager steps."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt
from attnc.ops.shipped import shipped
from attnc.ops.verification.criterion import check
from attnc.ops.verification.draw import Shape, draw_inputs

pytestmark = pytest.mark.gpu
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DRAWN = loads(
    """
[narrow]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - slope[h]*(i - j)"
mask = "causal & window(50)"
sink = "z[h]"
params.slope = { shape = ["h"] }
params.z = { shape = ["h"] }

[sunk]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
sink = "z[h]"
params.z = { shape = ["h"] }

[reaching]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(9) | prefix(2000))"

[streaming]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(200) | prefix(4))"

[past_wide]
sink = "z[h]"
params.z = { shape = ["h"] }
terms = [
  { feature_map = "softmax", mask = "causal & window(299)", scale = "rsqrt(d)", factor = "1 + h" },
  { feature_map = "taylor(2)", mask = "i - j >= 40", scale = "rsqrt(d)", factor = "exp(z[h])" },
]

[past_linear]
terms = [
  { feature_map = "elu(x) + 1", mask = "i - j >= 64", scale = 0.3 },
  { feature_map = "softmax", mask = "causal & window(63)", scale = "rsqrt(d)" },
]

[gated]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-softplus(g[b,t,h])"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"] }
"""
)
VARIANTS = {**shipped(), **DRAWN}
FOLDED = ("window_taylor", "past_wide", "past_linear")
SOFTMAX = sorted(name for name, variant in VARIANTS.items() if variant.has_lse)
STATES = sorted(name for name, variant in VARIANTS.items() if variant.family == "state")


def drawn(name, dtype, tokens, batch=2, heads=(8, 2)):
    generator = torch.Generator().manual_seed(3)
    dims = (16, 64) if name in {"based", "window_taylor", "past_wide"} else (64, 64)
    shape = Shape(batch, tokens, tokens, *heads, *dims, strided=True)
    return draw_inputs(VARIANTS[name], shape, dtype, generator, torch.device("cuda"))


def begun(op: Op, x, **options):
    return op.init_state(
        x.q.shape[0], (x.q.shape[2], x.k.shape[2]), dim=(x.q.shape[3], x.v.shape[3]),
        dtype=x.q.dtype, **options,
    )  # fmt: skip


def held(name, dtype, tokens, prefilled, **options):
    """Prefills of the given lengths, then steps, against the whole by the formula."""
    op = compile_op(VARIANTS[name])
    x = drawn(name, DTYPES[dtype], tokens)
    state = begun(op, x, **options)
    cache = getattr(state, "cache", state)
    for tensor in (getattr(cache, "keys", None), getattr(cache, "values", None)):
        if tensor is not None:
            tensor.fill_(float("nan"))
    outs, at = [], 0
    for length in (*prefilled, *(1 for _ in range(tokens - sum(prefilled)))):
        piece = x.tokens(op.variant, slice(at, at + length))
        call = op.step if at >= sum(prefilled) else op.prefill
        out, state = call(*piece.qkv, state, **piece.tensors)
        outs.append(out)
        at += length
    ref = op.reference(*x.qkv, **x.tensors)
    verdict = check(torch.cat(outs, 1), ref, pt(op.variant, *x.qkv, x.tensors))
    assert verdict.sound, str(verdict)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capacity", [300, 3000])
@pytest.mark.parametrize("name", SOFTMAX)
def test_a_cache_gives_the_rows_of_the_formula(name, capacity, dtype):
    held(name, dtype, 290, (117, 140), capacity=capacity)


@pytest.mark.parametrize("name", ["flash", "narrow"])
def test_pages_give_the_rows_of_the_formula(name):
    held(name, "bf16", 150, (70, 31), capacity=160, page_size=16)


def test_a_ring_gives_the_rows_of_the_formula():
    held("narrow", "bf16", 190, (20, 90))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", FOLDED)
def test_a_ring_beside_a_state_gives_the_rows_of_the_formula(name, dtype):
    held(name, dtype, 190, (41, 120))


@pytest.mark.parametrize("name", FOLDED)
def test_a_graph_of_one_step_beside_a_state_replayed_is_eager_steps(name):
    replayed(name)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", STATES)
def test_a_state_gives_the_rows_of_the_formula(name, dtype):
    held(name, dtype, 90, (41, 20))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_recurrent_form_is_the_formula(name, dtype):
    op, x = compile_op(VARIANTS[name]), drawn(name, DTYPES[dtype], 333)
    ref = op.reference(*x.qkv, **x.tensors)
    out = op(*x.qkv, form="recurrent", **x.tensors)
    verdict = check(out, ref, pt(op.variant, *x.qkv, x.tensors))
    assert verdict.sound, str(verdict)


@pytest.mark.parametrize(
    "options", [{"capacity": 1000}, {"capacity": 64, "page_size": 16}], ids=str
)
@pytest.mark.parametrize("name", ["flash", "flash_alibi", "flash_window"])
def test_a_graph_of_one_cache_step_replayed_is_eager_steps(name, options):
    replayed(name, **options)


def test_a_graph_of_one_ring_step_replayed_is_eager_steps():
    replayed("narrow")


@pytest.mark.parametrize("name", STATES)
def test_a_graph_of_one_state_step_replayed_is_eager_steps(name):
    replayed(name)


def replayed(name, **options):
    tokens, before = 60, 20
    op, x = compile_op(VARIANTS[name]), drawn(name, torch.bfloat16, tokens)
    state = begun(op, x, **options)
    first = x.tokens(op.variant, slice(0, before))
    op.prefill(*first.qkv, state, **first.tensors)
    mine = state.clone()
    eager = []
    for at in range(before, tokens):
        piece = x.tokens(op.variant, slice(at, at + 1))
        out, state = op.step(*piece.qkv, state, **piece.tensors)
        eager.append(out)
    # the graph's own tensors, filled before each replay
    held = x.tokens(op.variant, slice(before, before + 1))
    still = [t.clone() for t in held.qkv]
    given = {n: t.clone() for n, t in held.tensors.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = op.step(*still, mine, **given)
    captured.fill_(float("nan"))
    for n, at in enumerate(range(before, tokens)):
        piece = x.tokens(op.variant, slice(at, at + 1))
        for to, new in zip(
            (*still, *given.values()), (*piece.qkv, *piece.tensors.values()), strict=True
        ):
            to.copy_(new)
        graph.replay()
        assert torch.equal(captured, eager[n]), f"step {n}"


def test_a_step_is_the_same_bit_for_bit_when_it_is_run_again():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.bfloat16, 2000)
    state = begun(op, x, capacity=4096)
    op.prefill(*x.qkv, state)
    one = [t[:, :1] for t in x.qkv]
    outs = [op.step(*one, state.clone())[0] for _ in range(5)]
    assert all(torch.equal(outs[0], other) for other in outs[1:])
