"""What becomes of taps before they are used: the formulas, their gradients, dropout."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.convolution import FilterShape
from attnc.ops.verification.verify import verify
from tests.ops.convolutions import CONVOLUTIONS, dense


@pytest.mark.parametrize("form", ["toeplitz", "fft"])
def test_taps_are_smoothed_and_then_squashed(form):
    op = compile_op(CONVOLUTIONS["sparse"])
    v, w = torch.randn(2, 70, 3), torch.randn(3, 40) / 20
    expected = dense("sparse", v, {"w": w})
    torch.testing.assert_close(op.reference(v, w=w), expected, rtol=0, atol=1e-12)
    out = op(v, w=w, form=form)
    assert (out - expected).norm() / expected.norm() < 1e-5
    # the order counts, and so does each of the two
    assert not torch.allclose(expected, dense("both_sides", v, {"w": w}))


def test_verify_holds_transformed_taps_and_their_gradients():
    report = verify(
        CONVOLUTIONS["sparse"], shapes=[FilterShape.of(2, 90, 3, 50)], dtypes=["bf16", "fp32"]
    )
    assert report.passed, report.failures
    assert any(row.what.startswith("d w, ") for row in report.rows)


def test_dropout_drops_taps_in_training_alone_and_scales_the_others():
    text = '[dropped]\nweight = "w[c, i-j]"\nmask = "causal"\ntransforms = ["dropout(0.25)"]\n'
    op = compile_op(loads(text + 'params.w = { shape = ["c", "T"], grad = true }\n')["dropped"])
    impulse = torch.zeros(1, 500, 2)
    impulse[:, 0] = 1
    w = torch.rand(2, 500) + 1
    torch.testing.assert_close(op(impulse, w=w)[0].T, w, rtol=1e-5, atol=1e-5)
    found = [op(impulse, w=w, training=True, form="toeplitz")[0].T / w for _ in range(2)]
    for taps in found:
        kept = taps.abs() > 1e-4
        torch.testing.assert_close(taps[kept], torch.full_like(taps[kept], 4 / 3))
        # 1000 taps: six standard deviations of the share that stays
        assert abs(float(kept.float().mean()) - 0.75) < 0.085
    assert not torch.equal(found[0], found[1])
