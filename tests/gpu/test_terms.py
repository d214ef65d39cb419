"""Compiled sums of terms, forward and backward, against the formula."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_terms import DECLARED
from tests.ops.test_terms_backward import EVERY
from tests.ops.test_terms_chunked import TEXT as BY_CHUNKS

pytestmark = pytest.mark.gpu
EXAMPLE = shipped()["window_taylor"]


@pytest.mark.parametrize("name", loads(DECLARED))
def test_compiled_terms_pass_verify_in_every_dtype(name):
    shapes = (
        Shape(2, 1000, 1000, 4, 2, 64, 64),
        Shape(1, 300, 1000, 4, 1, 40, 80, strided=True),
        Shape(1, 1000, 300, 2, 2, 16, 64),
    )
    report = verify(loads(DECLARED)[name], device="cuda", shapes=shapes)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", ["behind", "twice", "ahead", "made"])
def test_compiled_sums_by_chunks_pass_verify(name):
    shapes = (Shape(1, 1000, 1000, 4, 2, 16, 64), Shape(1, 4000, 4000, 2, 1, 16, 40, strided=True))
    report = verify(loads(BY_CHUNKS)[name], device="cuda", shapes=shapes)
    assert report.passed, str(report)
    assert any(row.what == "chunked form" for row in report.rows)


@pytest.mark.parametrize("name", ["every", "mapped"])
def test_compiled_gradients_by_chunks_pass_verify(name):
    """In several segments a head, of params and inputs of every kind."""
    shapes = (Shape(1, 4000, 4000, 4, 2, 16, 64), Shape(2, 1000, 1000, 2, 1, 16, 40, strided=True))
    report = verify(loads(EVERY)[name], device="cuda", shapes=shapes)
    assert report.passed, str(report)
    assert any(row.what == "d q, chunked form" for row in report.rows)


@pytest.mark.parametrize("dims", [(16, 64), (64, 64), (128, 128)], ids=str)
def test_the_compiled_example_passes_verify(dims):
    shapes = (Shape(1, 4096, 4096, 4, 2, *dims), Shape(2, 63, 63, 4, 4, *dims))
    report = verify(EXAMPLE, device="cuda", shapes=shapes)
    assert report.passed, str(report)


@pytest.mark.parametrize("size", [-400.0, 400.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_terms_take_scores_of_any_size(size, dtype):
    """Of weights under fp32's least number and over its largest, with exp2 as the GPU has it."""
    op = compile_op(EXAMPLE)
    q = torch.ones(1, 300, 2, 64, device="cuda", dtype=dtype, requires_grad=True)
    k = torch.full((1, 300, 2, 64), size / 8, device="cuda", dtype=dtype, requires_grad=True)
    v = torch.randn(1, 300, 2, 64, device="cuda", dtype=dtype, requires_grad=True)
    mix = torch.zeros(2, device="cuda", requires_grad=True)
    out, lse = op(q, k, v, mix=mix, return_lse=True)
    ref, ref_lse = op.reference(q, k, v, mix=mix, return_lse=True)
    tolerance = 2e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), ref, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), ref_lse, rtol=1e-5, atol=1e-3)
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v, mix))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("form", ["online", "chunked"])
def test_two_compiled_backwards_of_terms_agree_bit_for_bit(form):
    op = compile_op(EXAMPLE)
    leaves = [torch.randn(2, 777, 4, 16, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    leaves.append(torch.randn(4, device="cuda"))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    found = []
    for _ in range(2):
        out = op(*leaves[:3], mix=leaves[3], form=form)
        found.append(torch.autograd.grad(out.float().square().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
