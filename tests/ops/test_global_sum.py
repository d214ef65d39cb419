"""The state family where every query sees every key: one state serves all, in linear time."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.errors import InputError, PlanError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_gradients import hold_exactly

DECLARED = """
[encoder]
feature_map = "elu(x) + 1"
scale = 1.0
normalize = "sum"

[powers]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
normalize = "sum"
mask = "full"

[plain]
feature_map = "3*s"
scale = "rsqrt(d)"
normalize = "none"
value = "u[b,t,h]*v"
inputs.u = { shape = ["b", "t", "h"], grad = true }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(
    "shape", [Shape(2, 37, 37, 4, 2, 16, 20), Shape(1, 1, 1, 1, 1, 16, 16),
              Shape(1, 260, 260, 2, 1, 16, 16)], ids=str)  # fmt: skip
def test_gradients_of_the_global_sum_are_those_of_the_formula(name, shape, ops):
    hold_exactly(ops[name], shape, form="chunked")


@pytest.mark.parametrize("name", loads(DECLARED))
def test_the_sum_passes_every_check_and_agrees_with_the_parallel_form(name):
    shapes = [Shape(1, 300, 300, 2, 1, 16, 32), Shape(1, 30, 50, 2, 1, 16, 32)]
    report = verify(loads(DECLARED)[name], shapes=shapes, dtypes=["fp32", "bf16"], gradients=False)
    assert report.passed, str(report)
    assert any(row.what == "chunked against parallel" for row in report.rows)


def test_no_pass_of_it_forms_a_pair(ops):
    """Its work is linear in the length: no product is [tokens, tokens]."""
    for backward in (False, True):
        plan = ops["encoder"].plan(form="chunked", backward=backward)
        for step in plan.passes:
            for node in step.kernel.graph.nodes():
                assert node.op != "dot" or "BC" not in node.left.shape or (
                    node.shape != ("BC", "BC")
                ), node.name  # fmt: skip


def test_a_sum_over_all_tokens_is_no_state_that_a_call_hands_on(ops):
    q, k, v = (torch.randn(1, 8, 1, 16) for _ in range(3))
    reason = "the mask is not exactly causal, and a fold over tokens sees just j <= i"
    with pytest.raises(InputError) as caught:
        ops["encoder"](q, k, v, return_state=True)
    assert caught.value.message == "'encoder' has no state" and caught.value.notes == (reason,)
    with pytest.raises(PlanError) as refused:
        ops["encoder"].plan(form="chunked", stateful=True)
    assert refused.value.message == "'encoder' keeps no state"


def test_a_mask_that_hides_anything_has_no_global_sum():
    for mask in ("causal", "window(5, 5)", "documents(ids)"):
        text = DECLARED.replace('mask = "full"', f'mask = "{mask}"')
        text = text.replace("[plain]", 'inputs.ids = { shape = ["b", "t"] }\n\n[plain]')
        op = compile_op(loads(text)["powers"])
        verdict = op.plan(dim=(16, 16)).algebra.legal("chunked")
        assert "serves them all" not in verdict.reason
