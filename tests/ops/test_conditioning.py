"""Rows that fp32 cannot normalise: what a state's rounding may change, and what it may not."""

from __future__ import annotations

import torch

import attnc
from attnc.ops.shipped import shipped
from attnc.ops.verification.conditioning import allowance
from attnc.ops.verification.criterion import check


def nearly_orthogonal(dim: int = 16) -> tuple[torch.Tensor, ...]:
    """q . k of one token in 32 heads is a millionth of |q| |k|: its square nearly vanishes."""
    torch.manual_seed(0)
    k = torch.randn(1, 1, 32, dim)
    q = torch.randn(1, 1, 32, dim)
    q = q - (q * k).sum(-1, keepdim=True) / (k * k).sum(-1, keepdim=True) * k * (1 - 1e-5)
    return q, k, torch.randn(1, 1, 32, 64)


def test_a_state_cannot_tell_a_weight_that_vanishes_from_rounding_and_verify_allows_for_that():
    variant = shipped()["rebased"]
    q, k, v = nearly_orthogonal()
    op = attnc.compile(variant)
    out = op(q, k, v, form="recurrent")
    allowed = allowance(variant, q, k, v, {})
    # one key: its weight over itself is 1, and the output is v
    assert not check(out.bfloat16(), v.double(), v.double()).passed
    assert check(out.bfloat16(), v.double(), v.double(), allowed=allowed).passed


def test_rows_whose_weights_do_not_cancel_are_allowed_no_more_than_fp32_rounding():
    torch.manual_seed(1)
    q, k = (torch.randn(2, 50, 2, 16) for _ in range(2))
    v = torch.randn(2, 50, 2, 64)
    allowed = allowance(shipped()["based"], q, k, v, {})
    assert allowed.shape == (2, 50, 2, 1)
    assert float(allowed.max()) < 1e-3


def test_a_wrong_output_is_still_wrong_beside_what_is_allowed():
    variant = shipped()["rebased"]
    torch.manual_seed(2)
    q, k = (torch.randn(1, 40, 2, 16) for _ in range(2))
    v = torch.randn(1, 40, 2, 64)
    ref = attnc.compile(variant).reference(q, k, v)
    allowed = allowance(variant, q, k, v, {})
    wrong = ref.flip(2)
    assert not check(wrong.bfloat16(), ref, ref.bfloat16().double(), allowed=allowed).passed


def test_a_variant_without_a_sum_or_with_mapped_channels_is_allowed_nothing():
    q = k = v = torch.randn(1, 4, 1, 16)
    for name in ("lightning", "flash", "linear", "relu2"):
        assert allowance(shipped()[name], q, k, v, {"slope": torch.ones(1)}) is None
