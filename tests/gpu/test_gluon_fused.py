"""The fused backward on a card: right at any shape, twice in a row, and beside two passes."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from attnc.codegen.plan import Plan
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.gpu.test_gluon_backward import VARIANTS, drawn, launch

pytestmark = pytest.mark.gpu
# data lists the tiles of the other masks; no gradient of a declared tensor is wanted
NAMES = [
    name for name, variant in VARIANTS.items()
    if not (variant.mask_form.documents or variant.mask_form.blocks)
]  # fmt: skip


@cache
def fused_plans(name: str, dim: int, dtype: str) -> tuple[Plan, ...]:
    op = compile_op(VARIANTS[name], backend="gluon", deterministic=False)
    request = op.request((dim, dim), dtype, None, False)
    found = plans(of_phase(request, "backward", ()))
    return tuple(plan for plan in found if not plan.deterministic)


def hold(name: str, shape: Shape, dtype: str = "bf16", *, seed: int = 0, rank: int = 0) -> None:
    """dq, dk, dv beside those of two passes, which other tests hold to the formula."""
    plan = fused_plans(name, shape.qk, dtype)[rank]
    op = compile_op(VARIANTS[name], backend="gluon")
    asked = of_phase(op.request((shape.qk, shape.qk), dtype, None, False), "backward", ())
    inputs, incoming = drawn(name, shape, dtype, seed)
    two = launch(plans(asked)[0], inputs, incoming)
    for _ in range(2):
        for label, one, other in zip("qkv", launch(plan, inputs, incoming), two, strict=True):
            assert torch.isfinite(one).all(), f"d{label} of {name} {shape} {dtype}"
            error = float((one.float() - other.float()).norm() / other.float().norm())
            assert error < 4e-3, f"d{label} of {name} {shape} {dtype} {plan.passes}: {error}"


@pytest.mark.parametrize("tokens", [1, 63, 128, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_a_feature_has_the_gradients_of_two_passes_at_any_length(name, tokens):
    hold(name, Shape(2, tokens, tokens, 4, 2, 64, 64), seed=tokens)


@pytest.mark.parametrize("dim", [80, 96, 128])
@pytest.mark.parametrize("name", ["plain", "windowed", "capped"])
def test_wide_and_odd_heads_are_right(name, dim):
    hold(name, Shape(1, 333, 333, 4, 1, dim, dim, strided=True))


@pytest.mark.parametrize("lengths", [(1, 1000), (100, 333), (333, 100), (640, 64)])
@pytest.mark.parametrize("name", ["causal", "plain", "banded"])
def test_queries_stand_at_the_last_keys(name, lengths):
    hold(name, Shape(2, *lengths, 4, 2, 64, 64))


@pytest.mark.parametrize(("dim", "rank"), [(64, 0), (64, 1), (128, 0)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["plain", "causal"])
def test_every_tile_is_right_where_all_multiprocessors_add(name, dtype, dim, rank):
    hold(name, Shape(2, 4000, 4000, 16, 16, dim, dim), dtype, rank=rank)


@pytest.mark.parametrize("name", ["causal", "capped"])
def test_an_op_launches_the_fused_way_and_is_held_to_the_formula(name):
    shapes = [Shape(2, 500, 500, 4, 2, 64, 64), Shape(1, 300, 300, 2, 2, 128, 128)]
    plain = VARIANTS[name]
    report = verify(
        plain, device="cuda", backend="gluon", deterministic=False, dtypes=["bf16", "fp16"],
        shapes=shapes, seed=4,
    )  # fmt: skip
    assert report.passed, report.failures[0]
    assert sum("in any order" in row.what for row in report.rows) == 12
