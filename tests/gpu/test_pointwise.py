"""Compiled weights that are any function of the score, against the formula."""

from __future__ import annotations

import pytest
import torch

from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_pointwise import DECLARED

pytestmark = pytest.mark.gpu
VARIANTS = {**DECLARED, "shipped": shipped()["flash_sigmoid"]}


@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_weights_of_the_score_pass_verify_in_every_dtype(name):
    """Forward, gradients and steps, where the variant has them."""
    shapes = (
        Shape(2, 1000, 1000, 4, 2, 64, 64),
        Shape(1, 300, 1000, 4, 1, 40, 80, strided=True),
        Shape(1, 1000, 300, 2, 2, 128, 128),
    )
    report = verify(VARIANTS[name], device="cuda", shapes=shapes)
    assert report.passed, str(report)


def test_as_many_entries_and_heads_as_pass_one_axis_of_a_grid():
    """65,536 windows of an image and more: CUDA ends all axes but the first at 65,535."""
    op = compile_op(shipped()["lightning"])
    q, k, v = torch.randn(3, 4100, 64, 16, 16, device="cuda", dtype=torch.bfloat16).unbind()
    slope = torch.rand(16, device="cuda")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = op(*leaves, slope=slope, form="chunked")
    grads = torch.autograd.grad(out.float().square().sum(), leaves)
    last = [x[-2:].detach().requires_grad_() for x in (q, k, v)]
    alone = op(*last, slope=slope, form="chunked")
    torch.testing.assert_close(out[-2:], alone, rtol=0.02, atol=0.02)
    of_alone = torch.autograd.grad(alone.float().square().sum(), last)
    for gradient, own in zip(grads, of_alone, strict=True):
        torch.testing.assert_close(
            gradient[-2:], own, rtol=0.05, atol=0.05 * float(own.abs().max())
        )
