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
