"""Scores without a number where the mask hides: their gradients are of visible pairs alone."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.draw import Shape, draw_inputs
from attnc.ops.verification.verify import verify

# a score, and one that is the same number at j <= i and a number everywhere
TWINS = {
    "a logarithm": ("s - slope[h]*log1p(i - j)", "s - slope[h]*log1p(abs(i - j))"),
    "a root": ("s*sqrt(i - j + slope[h])", "s*sqrt(abs(i - j) + slope[h])"),
    "a branch": (
        "where(i > j, s - slope[h]*log(i - j), slope[h]*s)",
        "where(i > j, s - slope[h]*log(max(i - j, 1)), slope[h]*s)",
    ),
    "a quotient": ("s + slope[h]/(i - j + 1)", "s + slope[h]/(abs(i - j) + 1)"),
}
SHAPE = Shape(1, 33, 33, 2, 1, 64, 64)


def variant(score: str):
    text = f"""
    [it]
    feature_map = "softmax"
    scale = "rsqrt(d)"
    score = "{score}"
    mask = "causal"
    params.slope = {{ shape = ["h"], grad = true }}
    """
    return loads(text)["it"]


@pytest.mark.parametrize("what", TWINS)
def test_the_reference_differentiates_the_visible_pairs_alone(what):
    generator = torch.Generator().manual_seed(5)
    one, other = map(variant, TWINS[what])
    cpu = torch.device("cpu")
    inputs = draw_inputs(one, SHAPE, torch.float32, generator, cpu)
    out = torch.randn(1, 33, 2, 64, generator=generator)
    incoming = Incoming(out, torch.randn(1, 2, 33, generator=generator))
    found, expected = (
        reference_gradients(each, *inputs.qkv, inputs.tensors, incoming) for each in (one, other)
    )
    assert set(found) == {"q", "k", "v", "slope"}
    for name, gradient in found.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-3, name
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-9), name


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("what", TWINS)
def test_kernels_give_those_gradients(what, backend):
    report = verify(
        variant(TWINS[what][0]), backend=backend, dtypes=["bf16"], shapes=[SHAPE], seed=3
    )
    assert report.passed, report.failures[0]
    assert {"d q, online form", "d slope, online form"} <= {row.what for row in report.rows}
