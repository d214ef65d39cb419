"""Drawn sums of terms: forward, lse and gradients against the formula."""

from __future__ import annotations

import torch
from hypothesis import Phase, assume, given, settings

from attnc.errors import PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.criterion import check_lse
from attnc.ops.verification.gradients import gradient_rows
from tests.ops.test_gradients import hold_exactly
from tests.ops.test_property import SETTINGS, eager, hold
from tests.sums import calls


@settings(SETTINGS, max_examples=12)
@given(calls())
def test_a_sum_is_its_formula(call):
    verdict = hold(call)
    assert verdict.passed, str(verdict)


@settings(SETTINGS, max_examples=6)
@given(calls(folds=True))
def test_a_sum_by_chunks_is_its_formula(call):
    verdict = hold(call, "chunked")
    assert verdict.passed, str(verdict)


@settings(SETTINGS, max_examples=8)
@given(calls())
def test_an_lse_of_a_sum_is_its_formula(call):
    op = compile_op(call.variant)
    _, lse = op(*call.inputs.qkv, return_lse=True, **call.inputs.tensors)
    _, ref = op.reference(*call.inputs.qkv, return_lse=True, **call.inputs.tensors)
    # features are rounded before they are multiplied: then eager's error is the measure
    mapped = any(term.feature_map.phi is not None for term in call.variant.terms)
    verdict = check_lse(lse, ref, eager(call, return_lse=True)[1] if mapped else None)
    assert verdict.passed, str(verdict)


@settings(SETTINGS, max_examples=10)
@given(calls(tokens=50, grad=True))
def test_gradients_of_a_drawn_sum_are_those_of_its_formula(call):
    op = compile_op(call.variant)
    try:
        hold_exactly(op, call.shape)
    except PlanError:
        assume(False)


@settings(SETTINGS, max_examples=4)
@given(calls(tokens=70, grad=True, folds=True))
def test_gradients_of_a_drawn_sum_by_chunks_are_those_of_its_formula(call):
    op = compile_op(call.variant)
    try:
        hold_exactly(op, call.shape, "chunked")
    except PlanError:
        # the features of a high degree fit no program
        assume(False)


@settings(SETTINGS, max_examples=6, phases=[Phase.generate])
@given(calls(tokens=40, grad=True))
def test_gradients_of_a_sum_err_as_eager_torch_does(call):
    op = compile_op(call.variant)
    generator = torch.Generator().manual_seed(0)
    dtype = call.inputs.q.dtype
    try:
        forms = op.forms()[:1]
        rows = list(gradient_rows(op, call.inputs, call.shape, call.dtype, dtype, forms, generator))
    except PlanError:
        assume(False)
    for row in rows:
        assert row.error <= row.bound, str(row)
