"""Addresses are made in 64 bits where an index times a size, or a stride, passes 2**31."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attnc.codegen.plan import Plan
from attnc.codegen.text.render import render
from attnc.errors import AttncError
from attnc.ops.op import compile as compile_op
from tests.codegen.emitted import DIMS, all_variants
from tests.codegen.magnitudes import narrow_products

EACH = pytest.mark.parametrize("name", all_variants())


def plans_of(name: str) -> Iterator[Plan]:
    """Every form of a variant, forward and backward, with a state where there may be one."""
    variant = all_variants()[name]
    op = compile_op(variant, backend="triton")
    dims = DIMS.get(name, ((64, 64),))[0]
    for form in op.forms():
        for backward in (False, True):
            yield op.plan(dim=dims, form=form, backward=backward)
        if form == "chunked" and not variant.has_lse:
            yield op.plan(dim=dims, form=form, stateful=True)


def packed_plans_of(name: str) -> Iterator[Plan]:
    """The same over packed sequences, of which some variants take none."""
    variant = all_variants()[name]
    try:
        op = compile_op(variant, backend="triton").over_sequences()
    except AttncError:
        return
    dims = DIMS.get(name, ((64, 64),))[0]
    for form in op.forms():
        stateful = form != "parallel" and not variant.has_lse
        for backward in (False, True):
            yield op.plan(dim=dims, form=form, backward=backward, stateful=stateful)


@EACH
def test_no_product_of_32_bits_passes_2_to_the_31(name):
    for plan in plans_of(name):
        assert narrow_products(plan, render(plan)) == [], plan.form


@pytest.mark.rest(keep=3)
@EACH
def test_none_does_over_packed_sequences(name):
    for plan in packed_plans_of(name):
        assert narrow_products(plan, render(plan)) == [], plan.form


@pytest.mark.parametrize(
    ("name", "widened", "narrow"),
    [
        ("fox", "b_i.to(tl.int64) * stride_u_g_t", "b_i * stride_u_g_t"),
        ("document_mask", "o_s_ids.to(tl.int64) * stride_u_ids_t", "o_s_ids * stride_u_ids_t"),
        ("block_sparse", "o_n.to(tl.int64) * stride_u_table_jb", "o_n * stride_u_table_jb"),
        ("gla", "tl.cast(i_c, tl.int64) * FP * V", "i_c * FP * V"),
        ("flash", "tl.cast(i_s, tl.int64) * stride_k_t", "i_s * stride_k_t"),
        ("flash", "i_bh = (tl.program_id(0) // NT).to(tl.int64)", "i_bh = tl.program_id(0) // NT"),
    ],
)
def test_a_product_that_is_not_widened_is_found(name, widened, narrow):
    texts = [(plan, text) for plan in plans_of(name) if widened in (text := render(plan))]
    assert texts
    for plan, text in texts:
        assert narrow_products(plan, text.replace(widened, narrow))


def test_sizes_of_states_of_packed_sequences_are_counted_in_64_bits():
    widened, narrow = "tl.cast(i_seq, tl.int64)", "i_seq"
    texts = [
        (plan, text) for plan in packed_plans_of("linear") if widened in (text := render(plan))
    ]
    assert texts
    for plan, text in texts:
        assert narrow_products(plan, text.replace(widened, narrow))


def test_heads_are_widened_in_a_gluon_backward_where_they_meet_a_stride():
    op = compile_op(all_variants()["flash_alibi"], backend="gluon", device="h100")
    text = op.source(dim=(64, 64), backward=True)
    assert text.count("i_h.to(gl.int64) * stride_u_slope_h") == 2
    assert "i_h * stride_" not in text
