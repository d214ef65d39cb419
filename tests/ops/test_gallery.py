"""Every shipped variant against its reference: each form, its gradients, fp32 and bf16."""

from __future__ import annotations

import pytest

from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import attentions, convolutions, shipped
from attnc.ops.verification.convolution import FilterShape
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_verify import NAMES

# test_verify holds three of them, at more shapes
OTHERS = [name for name in attentions() if name not in NAMES]


def shape_of(name: str) -> Shape:
    """Ragged against every tile, and as small as a variant's masks and monomials leave it."""
    variant = shipped()[name]
    # the first and the last of two blocks of 64, a band's both ends, a chunk and its rest
    tokens = {"sinks": 150, "block_sparse": 70}.get(name, 37)
    monomials = any(part.feature_map.degree > 1 for part in variant.terms or (variant,))
    dims = (192, 128) if name == "mla" else (16, 24) if monomials else (40, 24)
    return Shape(1, tokens, tokens, 2, 1, *dims)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_variant_is_its_reference_in_every_form(name):
    report = verify(shipped()[name], shapes=[shape_of(name)], dtypes=["fp32", "bf16"])
    assert report.passed, str(report)
    assert not report.skipped
    for dtype in ("fp32", "bf16"):
        rows = {row.what for row in report.rows if row.dtype == dtype}
        forms = compile_op(shipped()[name]).forms()
        assert {f"{form} form" for form in forms} <= rows
        assert {f"d q, {form} form" for form in forms if form != "recurrent"} <= rows


@pytest.mark.parametrize("name", convolutions())
def test_a_shipped_convolution_is_its_direct_sum_in_every_form(name):
    variant = convolutions()[name]
    # ragged, an odd row that no other is packed with, more taps than tokens; 16 bits are dear here
    report = verify(variant, shapes=[FilterShape.of(3, 45, 1, 50)], dtypes=["fp32"])
    assert report.passed, str(report)
    assert not report.skipped
    rows = {row.what for row in report.rows}
    grads = ["v", *(t.name for t in (*variant.params, *variant.inputs) if t.grad)]
    for form in compile_op(variant).forms():
        assert {f"{form} form", *(f"d {label}, {form} form" for label in grads)} <= rows
