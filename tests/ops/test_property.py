"""Drawn calls: the emitted kernels, interpreted, against the formula by the design's criterion."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings

from attnc.codegen.plan import Plan
from attnc.codegen.text.render import render
from attnc.errors import PlanError
from attnc.ops import built as built_module
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt
from attnc.ops.verification.criterion import Verdict, check, check_lse, check_state
from tests.drawn_calls import Call, calls

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
SABOTAGED = settings(
    SETTINGS, max_examples=10, phases=[Phase.generate], derandomize=True, database=None
)


def eager(call: Call, **options: bool) -> torch.Tensor:
    """The formula in the call's own dtype: what the criterion allows a kernel to err by."""
    return pt(call.variant, *call.inputs.qkv, call.inputs.tensors, **options)


def hold(call: Call, form: str | None = None) -> Verdict:
    """The verdict on one call; a state that no tile holds is the planner's to refuse."""
    op = compile_op(call.variant)
    try:
        out = op(*call.inputs.qkv, form=form, **call.inputs.tensors)
    except PlanError:
        assume(False)
    ref = op.reference(*call.inputs.qkv, **call.inputs.tensors)
    return check(out, ref, eager(call))


@SETTINGS
@given(calls(tokens=70))
def test_an_op_is_its_formula(call):
    verdict = hold(call)
    assert verdict.passed, str(verdict)


# four forms of each draw
@pytest.mark.timeout(300)
@SETTINGS
@given(calls("state", causal=True, square=True, tokens=70))
def test_every_form_of_a_state_variant_is_its_formula(call):
    for form in compile_op(call.variant).forms():
        verdict = hold(call, form)
        assert verdict.passed, f"{form}: {verdict}"


@settings(SETTINGS, max_examples=12)
@given(calls("softmax", tokens=70))
def test_an_lse_is_its_formula(call):
    op = compile_op(call.variant)
    _, lse = op(*call.inputs.qkv, return_lse=True, **call.inputs.tensors)
    _, ref = op.reference(*call.inputs.qkv, return_lse=True, **call.inputs.tensors)
    plan = op.plan(dim=(call.shape.qk, call.shape.v), dtype=call.dtype)
    # a hardware tanh is as exact as the tensors: then eager's error is the measure
    hardware = "fast_tanh" in plan.helpers
    verdict = check_lse(lse, ref, eager(call, return_lse=True)[1] if hardware else None)
    assert verdict.passed, str(verdict)


@settings(SETTINGS, max_examples=8)
@given(calls("state", causal=True, square=True, tokens=70))
def test_a_state_is_its_formula(call):
    op = compile_op(call.variant)
    try:
        _, state = op(*call.inputs.qkv, return_state=True, **call.inputs.tensors)
    except PlanError:
        assume(False)
    _, ref = op.reference(*call.inputs.qkv, return_state=True, **call.inputs.tensors)
    _, rounded = eager(call, return_state=True)
    verdict = check_state(state, ref, rounded, call.inputs.q.dtype)
    assert verdict.passed, str(verdict)


def sabotage(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> list[str]:
    """Replace a statement in every emitted text; the texts that had it are listed."""
    touched: list[str] = []

    def spoiled(plan: Plan) -> str:
        text = render(plan)
        if old in text:
            touched.append(plan.variant.name)
        return text.replace(old, new)

    monkeypatch.setattr(built_module, "render", spoiled)
    return touched


def failures(family: str, *, causal: bool = False) -> tuple[int, int]:
    """How many of the drawn calls fail the check, and of how many that it can judge."""
    failed: list[bool] = []

    @SABOTAGED
    @hypothesis.seed(7)
    @given(calls(family, causal=causal, square=causal, tokens=70))
    def held(call: Call) -> None:
        verdict = hold(call)
        if not verdict.trivial:
            failed.append(not verdict.passed)

    held()
    return sum(failed), len(failed)


@pytest.mark.parametrize("family", ["softmax", "state"])
def test_a_kernel_that_writes_zeros_is_caught_every_time(family, monkeypatch):
    touched = sabotage(
        monkeypatch, "b_o.to(o.dtype.element_ty)", "(b_o * 0.0).to(o.dtype.element_ty)"
    )
    failed, judged = failures(family)
    assert touched
    assert judged >= 5
    assert failed == judged


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("softmax", "tl.where(m_st, b_s,", "tl.where(m_st | True, b_s,"),
        ("state", "r_c[:, None] >= r_c[None, :]", "r_c[:, None] >= -1 + 0 * r_c[None, :]"),
    ],
)
def test_a_kernel_without_its_mask_is_caught(family, old, new, monkeypatch):
    touched = sabotage(monkeypatch, old, new)
    failed, judged = failures(family, causal=True)
    assert touched
    assert judged >= 5
    # one token, or one row, sees the same with and without a causal mask
    assert failed >= judged // 2
