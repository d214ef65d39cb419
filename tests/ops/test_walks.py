"""Backwards that walk the chunks: the formula's gradients, and where no program may walk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnc.codegen.device import DEVICES
from attnc.codegen.kernels.gradient.walk import WALKS
from attnc.codegen.plan import Plan
from attnc.codegen.planning.choice import choice_of, chosen, way_of
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.dsl import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.gradients import gradient_rows, op_gradients

# no decay, one a head, one a token by query and by key/value head; maps, sums and monomials
WALKED = """
[plain]
feature_map = "identity"
scale = 0.5
mask = "causal"
normalize = "none"

[constant]
feature_map = "identity"
scale = 1.0
log_decay = "-slope[h]"
mask = "causal"
normalize = "none"
params.slope = { shape = ["h"] }

[gated]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-g[b,t,h]**2"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"] }

[mapped]
feature_map = "elu(x) + 1"
scale = "rsqrt(d)"
log_decay = "-g[b,t,hkv]**2"
mask = "causal"
normalize = "sum"
inputs.g = { shape = ["b", "t", "hkv"] }

[powers]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
log_decay = "-g[b,t,h]**2"
mask = "causal"
normalize = "sum"
inputs.g = { shape = ["b", "t", "h"] }
"""
NAMES = tuple(loads(WALKED))
SPLIT = {"walk_dq", "walk_dk", "walk_dv"}


@pytest.fixture(scope="module")
def walked() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(WALKED).items()}


def drawn(op: Op, shape: Shape, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    inputs = draw_inputs(op.variant, shape, dtype, generator, torch.device("cpu"))
    return Inputs(*inputs.qkv, {name: x.to(dtype) for name, x in inputs.tensors.items()})


def hold(op: Op, shape: Shape, *, state: bool) -> None:
    """Gradients in fp64 are those of autograd through the reference."""
    inputs = drawn(op, shape, torch.float64)
    initial = None
    if state:
        sizes = op.state_shape(shape.batch, shape.hq, shape.hkv, shape.qk, shape.v)
        initial = torch.rand(sizes, dtype=torch.float64)
    out = torch.randn(shape.batch, shape.tq, shape.hq, shape.v, dtype=torch.float64)
    incoming = Incoming(out, None, None if initial is None else torch.randn_like(initial))
    ref = reference_gradients(
        op.variant, *inputs.qkv, inputs.tensors, incoming, initial_state=initial
    )
    found = op_gradients(op, inputs, incoming, form="chunked", initial_state=initial)
    for name, gradient in found.items():
        error = float((gradient - ref[name]).norm() / ref[name].norm())
        # constants of an expression are printed in fp32's digits
        assert error < 1e-6, f"d {name}, {shape}: {error:.3g}"


def backward_plans(op: Op, dims: tuple[int, int], wanted: tuple[str, ...] = ()) -> tuple[Plan, ...]:
    request = op.request(dims, "bf16", None, False, device=DEVICES["h100"])
    return plans(replace(request, phase="backward", wanted=wanted))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokens", "heads"), [(63, (2, 1)), (530, (4, 2))])
def test_gradients_of_a_walk_are_those_of_the_formula(name, tokens, heads, walked):
    """One segment, and several; a ragged last chunk; groups of query heads."""
    hold(walked[name], Shape(1, tokens, tokens, *heads, 24, 16), state=False)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 530])
def test_a_walk_starts_from_the_states_that_are_given_on_both_sides(name, tokens, walked):
    hold(walked[name], Shape(1, tokens, tokens, 2, 1, 16, 24), state=True)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_way_gives_the_same_gradients(name, split, walked, monkeypatch):
    """dk and dv in one walk or in two, with heads wider than what a program of a walk holds."""
    op = walked[name]
    planned = plans

    def one_way(request, *backend):
        found = planned(request, *backend)
        names = {plan: {step.kernel.name for step in plan.passes} for plan in found}
        if request.phase != "backward":
            return found
        walks = [plan for plan in found if names[plan] & set(WALKS)]
        ways = [plan for plan in walks if (names[plan] >= SPLIT) is split]
        return (min(ways, key=shares),)

    monkeypatch.setattr("attnc.ops.built_plans.plans", one_way)
    dims = (16, 128) if name == "powers" else (128, 128)
    hold(op, Shape(1, 70, 70, 2, 1, *dims), state=False)


def shares(plan: Plan) -> int:
    """The columns of k and of v that the programs of a plan's walks hold."""
    walks = [step for step in plan.passes if step.kernel.name in WALKS]
    return sum(step.tile["BK"] + step.tile["BV"] for step in walks)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
def test_a_walk_in_the_working_precision_errs_as_eager_torch_does(name, walked):
    op, shape = walked[name], Shape(1, 150, 150, 2, 1, 16, 32)
    inputs = drawn(op, shape, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for row in gradient_rows(op, inputs, shape, "bf16", torch.bfloat16, ("chunked",), generator):
        assert row.error <= row.bound, str(row)


@pytest.mark.parametrize("name", NAMES)
def test_no_state_of_a_chunk_goes_through_memory(name, walked):
    text = render(backward_plans(walked[name], (16, 64))[0])
    assert "carried" not in text
    assert "NS > 1" in text, "states of segments are made where there is more than one"


def test_a_walk_takes_dk_and_dv_at_once_where_the_registers_hold_both(walked):
    narrow, wide = (backward_plans(walked["constant"], (dim, dim))[0] for dim in (64, 128))
    assert [step.kernel.name for step in narrow.passes][-2:] == ["walk_dq", "walk_dkv"]
    assert [step.kernel.name for step in wide.passes][-3:] == ["walk_dq", "walk_dk", "walk_dv"]
    tiles = {step.kernel.name: (step.tile, step.num_warps, step.num_stages) for step in wide.passes}
    assert tiles["walk_dq"] == ({"BC": 64, "BK": 64, "BV": 128}, 4, 2)
    assert tiles["walk_dv"] == ({"BC": 64, "BK": 128, "BV": 64}, 4, 2)


def test_a_decays_gradient_keeps_a_program_a_chunk():
    op = compile_op(shipped()["lightning"])
    passes = backward_plans(op, (64, 64), wanted=("slope",))[0].passes
    names = {step.kernel.name for step in passes}
    assert {"carry", "dcarry", "dkey"} <= names and not names & set(WALKS)


def test_a_choice_of_either_way_finds_its_plan_again(walked):
    ranked = backward_plans(walked["constant"], (64, 64))
    ways = {way_of(plan): plan for plan in ranked}
    assert len(ways) > 2
    for plan in ways.values():
        assert chosen(ranked, choice_of(plan)).passes == plan.passes
    mixed = (*choice_of(ranked[0])[:-1], choice_of(ranked[-1])[-1])
    assert chosen(ranked, mixed) is None
