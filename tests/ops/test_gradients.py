"""The derived backward: real gradcheck, the reference's gradients, and what autograd asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from torch.autograd import gradcheck

from attnc.codegen.kernels.gradient import pairs
from attnc.codegen.planning.planner import plans
from attnc.dsl import loads
from attnc.errors import PlanError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.gradients import gradient_rows, op_gradients
from tests.drawn_calls import calls
from tests.ops.test_property import SETTINGS

CPU = torch.device("cpu")
# every kind of declared tensor: none, head, key/value head, query, key, both in any order, token
DECLARED = """
[biased]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s*sqrt(1 + z[h]**2) + u[b,i,h]*w[b,j,h] - r[h,i,j] + m*y[b,i] + tilt[hkv]*j + g[b,i,h] - g[b,j,h] + x[j,i]*x[j,i]"
mask = "causal | (j < 4)"
params.z = { shape = ["h"], grad = true }
params.m = { shape = [], grad = true }
params.tilt = { shape = ["hkv"], grad = true }
params.r = { shape = ["h", "i", "j"], grad = true }
inputs.u = { shape = ["b", "i", "h"], grad = true }
inputs.w = { shape = ["b", "j", "h"], grad = true }
inputs.y = { shape = ["b", "i"] }
inputs.g = { shape = ["b", "t", "h"], grad = true }
inputs.x = { shape = ["j", "i"], grad = true }

[gated]
feature_map = "elu(x) + 1"
scale = "rsqrt(d)"
log_decay = "-exp(a[h])*softplus(g[b,t,h])"
mask = "causal"
normalize = "sum"
params.a = { shape = ["h"], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

[powers]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
log_decay = "-slope[h]"
mask = "causal"
normalize = "sum"
params.slope = { shape = ["h"], grad = true }

[shared]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
log_decay = "-rate - g[b,t,hkv]**2"
mask = "causal & window(20)"
normalize = "none"
params.rate = { shape = [], grad = true }
inputs.g = { shape = ["b", "t", "hkv"], grad = true }
"""  # noqa: E501


@pytest.fixture(scope="module")
def declared() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def forms_of_shipped() -> list[tuple[str, str]]:
    # of the others' gradients, tests/ops/test_gallery.py holds every row
    names = ("based", "flash", "flash_alibi", "flash_softcap", "flash_window", "lightning",
             "linear", "mamba2", "retnet")  # fmt: skip
    return [(name, form) for name in names for form in compile_op(shipped()[name]).forms()]


def wide(op: Op, shape: Shape, seed: int = 0) -> Inputs:
    """Inputs of an fp64 call, declared tensors in fp64 too."""
    generator = torch.Generator().manual_seed(seed)
    inputs = draw_inputs(op.variant, shape, torch.float64, generator, CPU)
    floats = {n: x.double() if x.is_floating_point() else x for n, x in inputs.tensors.items()}
    return Inputs(*inputs.qkv, floats)


def function_of(op: Op, inputs: Inputs, form: str | None):
    """The op as a function of every input that has a gradient, and those inputs."""
    grads = {d.name for d in (*op.variant.params, *op.variant.inputs) if d.grad}
    names = [name for name in inputs.tensors if name in grads]
    fixed = {name: x for name, x in inputs.tensors.items() if name not in grads}
    leaves = [x.clone().requires_grad_() for x in (*inputs.qkv, *map(inputs.tensors.get, names))]

    def call(q, k, v, *tensors):
        return op(q, k, v, form=form, **fixed, **dict(zip(names, tensors, strict=True)))

    return call, tuple(leaves)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize(("name", "form"), forms_of_shipped())
def test_gradcheck_passes_for_a_shipped_variant_in_every_form(name, form, ops):
    call, leaves = function_of(ops[name], wide(ops[name], Shape(1, 37, 37, 2, 1, 16, 16)), form)
    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.rest
def test_gradcheck_element_by_element_passes_for_lightning(ops):
    inputs = wide(ops["lightning"], Shape(1, 3, 3, 1, 1, 16, 16))
    call, leaves = function_of(ops["lightning"], inputs, "chunked")
    assert gradcheck(call, leaves)


@pytest.mark.rest
@settings(SETTINGS, max_examples=6, phases=[Phase.generate])
@given(calls(tokens=40, grad=True))
def test_gradcheck_passes_for_a_drawn_variant(call):
    op = compile_op(call.variant)
    function, leaves = function_of(op, wide(op, call.shape), None)
    try:
        assert gradcheck(function, leaves, fast_mode=True, nondet_tol=0.0, rtol=1e-2)
    except PlanError:
        assume(False)


def hold_exactly(op: Op, shape: Shape, form: str | None = None, *, state: bool = False) -> None:
    """An fp64 call's gradients are those of the formula, up to constants of fp32 precision."""
    inputs = wide(op, shape)
    generator = torch.Generator().manual_seed(7)
    normal = lambda *sizes: torch.randn(sizes, generator=generator, dtype=torch.float64)  # noqa: E731
    initial = None
    if state:
        entries = shape.sequences or shape.batch
        initial = normal(*op.state_shape(entries, shape.hq, shape.hkv, shape.qk, shape.v)).abs()
    incoming = Incoming(
        normal(shape.batch, shape.tq, shape.hq, shape.v),
        normal(shape.batch, shape.hq, shape.tq) if op.softmax else None,
        None if initial is None else torch.randn_like(initial),
    )
    ref = reference_gradients(
        op.variant, *inputs.qkv, inputs.tensors, incoming, initial_state=initial
    )
    found = op_gradients(op, inputs, incoming, form=form, initial_state=initial)
    assert set(found) == set(ref)
    for name, gradient in found.items():
        scale = max(float(ref[name].norm()), 1e-6)
        error = float((gradient - ref[name]).norm()) / scale
        assert error < 1e-5, f"d {name}, {form} form, {shape}: {error:.3g}"


@settings(SETTINGS, max_examples=20)
@given(calls(tokens=70, grad=True))
def test_gradients_of_a_drawn_variant_are_those_of_its_formula(call):
    op = compile_op(call.variant)
    try:
        hold_exactly(op, call.shape)
    except PlanError:
        assume(False)


@settings(SETTINGS, max_examples=12)
@given(calls("state", causal=True, square=True, tokens=150, grad=True))
def test_gradients_of_drawn_states_are_those_of_the_formula(call):
    op = compile_op(call.variant)
    try:
        hold_exactly(op, call.shape, "chunked", state=True)
    except PlanError:
        assume(False)


@settings(SETTINGS, max_examples=10, phases=[Phase.generate])
@given(calls(tokens=50, grad=True))
def test_gradients_in_the_working_precision_err_as_eager_torch_does(call):
    op = compile_op(call.variant)
    generator = torch.Generator().manual_seed(0)
    dtype = call.inputs.q.dtype
    try:
        rows = list(
            gradient_rows(op, call.inputs, call.shape, call.dtype, dtype, op.forms()[:1], generator)
        )
    except PlanError:
        assume(False)
    for row in rows:
        assert row.error <= row.bound, str(row)


@pytest.mark.parametrize(("tq", "tk"), [(75, 75), (37, 80), (80, 37), (1, 50), (50, 1)])
def test_every_declared_tensor_of_a_score_has_its_gradient(tq, tk, declared):
    hold_exactly(declared["biased"], Shape(2, tq, tk, 4, 2, 16, 32))


@pytest.mark.parametrize(("name", "form"), [("gated", "parallel"), ("gated", "chunked"),
                                            ("shared", "parallel")])  # fmt: skip
def test_every_declared_tensor_of_a_decay_has_its_gradient(name, form, declared):
    hold_exactly(declared[name], Shape(2, 150, 150, 4, 2, 16, 32), form)


@pytest.mark.parametrize("tokens", [1, 63, 700])
def test_gradients_pass_through_the_states_of_several_segments(tokens, ops):
    hold_exactly(ops["lightning"], Shape(1, tokens, tokens, 2, 1, 16, 16), "chunked")
    hold_exactly(ops["linear"], Shape(1, tokens, tokens, 2, 1, 16, 16), "chunked", state=True)


@pytest.mark.parametrize("decayed", [False, True])
def test_gradients_pass_through_the_states_of_monomials(decayed, ops, declared):
    op = declared["powers"] if decayed else ops["based"]
    hold_exactly(op, Shape(1, 150, 150, 2, 1, 16, 16), "chunked")


def test_a_row_that_sees_nothing_gets_zeros_and_gives_none(ops):
    op = ops["flash"]
    q, k, v = (torch.randn(1, t, 1, 16, requires_grad=True) for t in (9, 4, 4))
    op(q, k, v).sum().backward()
    assert (q.grad[:, :5] == 0).all()
    assert q.grad[:, 5:].isfinite().all()
    assert k.grad.isfinite().all()


def test_two_backwards_agree_bit_for_bit(ops):
    op = ops["flash"]
    q, k, v = (torch.randn(1, 150, h, 32, requires_grad=True) for h in (4, 2, 2))
    out = op(q, k, v)
    do = torch.randn_like(out)
    first, second = (torch.autograd.grad(out, (q, k, v), do, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_slope_owes_nothing_to_the_rounding_of_the_output(ops):
    """One query of many keys: delta's rounding, times their distances, would be the error."""
    op, shape = ops["flash_alibi"], Shape(1, 1, 700, 2, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    inputs = draw_inputs(op.variant, shape, torch.float16, generator, CPU)
    out = torch.randn(1, 1, 2, 32, generator=generator).half()
    incoming = Incoming(out, torch.randn(1, 2, 1, generator=generator))
    slope = op_gradients(op, inputs, incoming)["slope"]
    ref = reference_gradients(op.variant, *inputs.qkv, inputs.tensors, incoming)["slope"]
    assert (slope - ref).abs().max() < 1e-5 * ref.abs().max()


def test_columns_of_dv_are_split_where_no_program_holds_the_whole_state():
    """fp32 states of 256 x 256 exceed any SRAM; a program then takes some columns of dv."""
    op = compile_op(shipped()["lightning"], device="h100")
    request = replace(op.request((256, 256), "bf16", "chunked", False), phase="backward")
    dvalue = plans(request)[0].passes[-1]
    assert dvalue.kernel.name == "dvalue" and dvalue.tile["BV"] < 256
    shape, generator = Shape(1, 70, 70, 1, 1, 256, 256), torch.Generator().manual_seed(0)
    inputs = draw_inputs(op.variant, shape, torch.bfloat16, generator, CPU)
    rows = [*gradient_rows(op, inputs, shape, "bf16", torch.bfloat16, ("chunked",), generator)]
    assert {row.what: row.passed for row in rows} == {
        f"d {name}, chunked form": True for name in ("q", "k", "v", "slope")
    }


def test_a_flipped_sign_in_a_derivative_is_caught(monkeypatch):
    """A mutation of the derivation, so that these tests are seen to fail."""
    original = pairs.shared_lines

    def flipped(outputs, bindings, printer):
        mutated = {key: -value if key == "b_ls" else value for key, value in outputs.items()}
        return original(mutated, bindings, printer)

    monkeypatch.setattr(pairs, "shared_lines", flipped)
    with pytest.raises(AssertionError, match="d q"):
        hold_exactly(compile_op(shipped()["flash_softcap"]), Shape(1, 40, 40, 1, 1, 16, 16))
