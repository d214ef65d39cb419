"""Where a score takes tanh from the special-function unit, and where it must not."""

from __future__ import annotations

import pytest
import torch

from attnc.codegen.device import device_named
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plan
from attnc.codegen.text.render import render
from attnc.dsl import loads
from attnc.ops.op import compile as compile_op

VARIANT = """
[capped]
feature_map = "softmax"
scale = 0.125
score = "{}"
"""


def text(score="softcap(s, 7)", device="h100", dtype="bf16", phase="forward", declared=VARIANT):
    variant = loads(declared.replace("{}", score))["capped"]
    request = Request(variant, device_named(device), (64, 64), dtype, phase=phase)
    return render(plan(request))


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_bf16_score_takes_the_hardwares_tanh(phase):
    emitted = text(phase=phase)
    assert "fast_tanh(" in emitted and "tanh.approx.f32" in emitted
    assert "def tanh" not in emitted


@pytest.mark.parametrize(
    "choice",
    [
        {"dtype": "fp32"},
        {"dtype": "fp16"},
        {"device": "mi300x"},
        {"score": "min(softcap(s, 7), 1.5)"},
        {"score": "where(tanh(s) < 0.5, s, 1)"},
        {"score": "s / (2 + tanh(s))"},
    ],
)
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_other_dtypes_devices_and_scores_with_kinks_or_poles_keep_the_exact_one(choice, phase):
    emitted = text(**choice, phase=phase)
    assert "fast_tanh" not in emitted and "tanh(" in emitted


def test_decays_and_features_keep_the_exact_one():
    decayed = """
[capped]
feature_map = "tanh(x)"
scale = 0.125
mask = "causal"
normalize = "none"
log_decay = "tanh(g[b,t,h]) - 1"
inputs.g = { shape = ["b", "t", "h"] }
"""
    emitted = text(declared=decayed)
    assert "fast_tanh" not in emitted and "tanh(" in emitted


def test_the_interpreters_tanh_errs_as_the_hardwares_does_and_no_more():
    """Eleven bits: a kernel that holds its bound here holds it with tanh.approx.f32."""
    op = compile_op(loads(VARIANT.replace("{}", "tanh(s)").replace("0.125", "1.0"))["capped"])
    q = torch.zeros(1, 401, 1, 16, dtype=torch.bfloat16)
    q[0, :, 0, 0] = torch.linspace(-6, 6, 401)
    k = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16)
    k[..., 0] = 1
    # with one key to see, a row's lse is its score
    _, lse = op(q, k, torch.ones_like(k), return_lse=True)
    error = (lse[0, 0].double() - torch.tanh(q[0, :, 0, 0].double())).abs()
    assert 2**-13 < error.max() < 2**-10.9
