"""Decays a token, in every form: signs, sums over tiles, and the helpers that gates call."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt
from attnc.ops.verification.criterion import check
from attnc.ops.verification.draw import Shape, draw_inputs

GATED = """
[by_head]
feature_map = "identity"
scale = 0.25
mask = "causal"
log_decay = "-softplus(g[t,h])"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"] }

[by_token_in_a_window]
feature_map = "elu(x) + 1"
scale = 1.0
mask = "causal & window(200)"
log_decay = "-sigmoid(g[t]) - 0.01*(h + 1)"
normalize = "sum"
inputs.g = { shape = ["b", "t"] }
"""
VARIANTS = loads(GATED)


def held(name: str, form: str, tokens: int) -> None:
    variant = VARIANTS[name]
    op = compile_op(variant)
    generator = torch.Generator().manual_seed(tokens)
    shape = Shape(2, tokens, tokens, 2, 1, 32, 48)
    inputs = draw_inputs(variant, shape, torch.float32, generator, torch.device("cpu"))
    out = op(*inputs.qkv, form=form, **inputs.tensors)
    ref = op.reference(*inputs.qkv, **inputs.tensors)
    verdict = check(out, ref, pt(variant, *inputs.qkv, inputs.tensors))
    assert verdict.sound, str(verdict)


@pytest.mark.parametrize("tokens", [1, 63, 333])
@pytest.mark.parametrize(
    ("name", "form"),
    [("by_head", "parallel"), ("by_head", "chunked"), ("by_token_in_a_window", "parallel")],
)
def test_a_gated_decay_is_its_formula(name, form, tokens):
    held(name, form, tokens)


def test_running_sums_go_on_from_block_to_block():
    """The gates pass sums 1,024 tokens at a time."""
    held("by_token_in_a_window", "parallel", 1100)


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
def test_the_logarithm_of_a_gate_that_vanishes_in_fp32_is_a_number(form):
    """sigmoid(-200) is 0 in fp32, and its logarithm -200 all the same."""
    text = GATED.split("[by_token")[0].replace("-softplus(g[t,h])", "log(sigmoid(g[t,h]))")
    op = compile_op(loads(text.replace('"h"] }', '"h"], grad = true }'))["by_head"])
    q, k, v = torch.randn(3, 1, 19, 1, 16)
    g = torch.tensor([3.0, -200.0, 1.0, -0.5, 200.0])[torch.arange(19) % 5].view(1, 19, 1)
    g.requires_grad_()
    out = op(q, k, v, g=g, form=form)
    # a chunk sums its decays in fp32: 1e-4 of those of -1,000 that lie before a weak one
    torch.testing.assert_close(out.double(), op.reference(q, k, v, g=g), rtol=1e-3, atol=1e-4)
    (found,) = torch.autograd.grad(out.square().sum(), g)
    (ref,) = torch.autograd.grad(op.reference(q, k, v, g=g).square().sum(), g)
    # a gate's gradient is a sum over pairs that cancel: it errs with the largest, not with itself
    size = float(ref.abs().max())
    assert size > 0.1
    torch.testing.assert_close(found, ref, rtol=1e-3, atol=2e-5 * size)


STRONG = """
[by_token]
feature_map = "identity"
scale = 0.25
mask = "causal"
log_decay = "-g[b,t,h]"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"], grad = true }

[by_head]
feature_map = "taylor(2)"
scale = 0.25
mask = "causal"
log_decay = "-g[h]"
normalize = "none"
params.g = { shape = ["h"], grad = true }

[within_a_window]
feature_map = "elu(x) + 1"
scale = 1.0
mask = "causal & window(20)"
log_decay = "-g[b,t]"
normalize = "none"
inputs.g = { shape = ["b", "t"], grad = true }
"""


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("strength", [0.1, 15])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in ("by_token", "by_head") for form in ("chunked", "recurrent")),
        *((name, "parallel") for name in ("by_token", "by_head", "within_a_window")),
    ],
)
def test_the_gradient_of_a_strong_gate_keeps_its_digits(name, form, strength):
    """It is as small as the decay: a token with itself, which has none, must not drown it."""
    op = compile_op(loads(STRONG)[name])
    # in the parallel form queries may start at any key, and tiles touch the diagonal at a corner
    rows = 58 if name == "within_a_window" else 75
    q, k = torch.randn(1, rows, 2, 16), torch.randn(1, 75, 1, 16)
    v = torch.randn(1, 75, 1, 24)
    (declared,) = (*op.variant.params, *op.variant.inputs)
    sizes = {"b": 1, "t": 75, "h": 2}
    g = strength + torch.rand([sizes[axis] for axis in declared.shape])
    g.requires_grad_()
    incoming = torch.randn(1, rows, 2, 24)
    (found,) = torch.autograd.grad(op(q, k, v, g=g, form=form), g, incoming)
    (ref,) = torch.autograd.grad(op.reference(q, k, v, g=g), g, incoming.double())
    assert float(ref.abs().max()) > 0
    assert float((found - ref).norm() / ref.norm()) < 1e-4


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_the_last_token_of_a_chunk_enters_the_state_whole_however_strong_the_gates(form):
    """Nothing decays it: what a sum over the chunk rounds must not."""
    op = compile_op(loads(STRONG)["by_token"])
    q, k, v = torch.randn(1, 200, 2, 16), torch.randn(1, 200, 1, 16), torch.randn(1, 200, 1, 24)
    g = 5 + 20 * torch.randn(1, 200, 2).abs()
    _, state = op(q, k, v, g=g, form=form, return_state=True)
    _, ref = op.reference(q, k, v, g=g, return_state=True)
    assert float((state - ref).norm() / ref.norm()) < 2e-6
