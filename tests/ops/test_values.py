"""Value expressions: what a key hands over in place of v, and the gradients through it."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc import Input, Param, Variant, c, causal, exp, h, t
from attnc.dsl import loads
from attnc.dsl.toml_file import dumps
from attnc.errors import DeclarationError, FieldError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import reference
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_gradients import hold_exactly, wide

# every kind of place a tensor is read at, in both families, where v is padded and where it is not
DECLARED = """
[scaled]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s + u[b,i,h] - u[b,j,h]"
value = "silu(v)*u[b,t,h] + w[hkv,c] - m"
mask = "causal | (j < 4)"
inputs.u = { shape = ["b", "t", "h"], grad = true }
params.w = { shape = ["hkv", "c"], grad = true }
params.m = { shape = [], grad = true }

[divided]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
value = "v/(1 + y[b,t]**2) + z[h]*x[b,j]"
mask = "causal & window(20)"
normalize = "sum"
inputs.y = { shape = ["b", "t"], grad = true }
inputs.x = { shape = ["b", "j"], grad = true }
params.z = { shape = ["h"], grad = true }

[mamba]
feature_map = "identity"
scale = 1.0
log_decay = "-dt[b,t,h]*exp(a[h])"
value = "dt[b,t,h]*v"
mask = "causal"
normalize = "none"
params.a = { shape = ["h"], grad = true }
inputs.dt = { shape = ["b", "t", "h"], grad = true }

[summed]
feature_map = "elu(x) + 1"
scale = 1.0
log_decay = "-slope[h]"
value = "v*v/e[b,t,hkv,c] + r[c]"
mask = "causal"
normalize = "sum"
params.slope = { shape = ["h"], grad = true }
inputs.e = { shape = ["b", "t", "hkv", "c"], grad = true }
params.r = { shape = ["c"], grad = true }

[monomials]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
value = "max(v, 0) + 0.1*h"
mask = "causal"
normalize = "sum"
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def forms() -> list[tuple[str, str]]:
    return [(name, form) for name, variant in loads(DECLARED).items()
            for form in compile_op(variant).forms()]  # fmt: skip


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize(("name", "form"), forms())
@pytest.mark.parametrize(("heads", "dims"), [((4, 2), (16, 32)), ((3, 1), (16, 20))])
def test_outputs_and_every_gradient_through_a_value_are_those_of_the_reference(
    name, form, heads, dims, ops
):
    shape = Shape(2, 37, 37, *heads, *dims)
    hold_exactly(ops[name], shape, form=form)
    inputs = wide(ops[name], shape)
    out = ops[name](*inputs.qkv, form=form, **inputs.tensors)
    ref = reference(ops[name].variant, *inputs.qkv, inputs.tensors)
    assert float((out - ref).norm() / ref.norm()) < 1e-6


@pytest.mark.parametrize("name", ["scaled", "divided"])
@pytest.mark.parametrize(("tq", "tk"), [(21, 50), (50, 21)])
def test_a_value_belongs_to_its_key_whatever_the_number_of_queries(name, tq, tk, ops):
    hold_exactly(ops[name], Shape(1, tq, tk, 4, 2, 16, 32))


def test_a_value_is_what_the_plain_variant_makes_of_the_scaled_v():
    """Against another variant of ours, and torch: o of dt*v is o of a v multiplied before."""
    plain = loads(DECLARED.replace('value = "dt[b,t,h]*v"\n', ""))["mamba"]
    q, k, v = (torch.randn(2, 70, 3, 16) for _ in range(3))
    dt, a = torch.rand(2, 70, 3), torch.rand(3)
    out = compile_op(loads(DECLARED)["mamba"])(q, k, v, dt=dt, a=a)
    torch.testing.assert_close(out, compile_op(plain)(q, k, v * dt[..., None], dt=dt, a=a))


@pytest.mark.rest
@pytest.mark.parametrize("name", ["mamba", "summed"])
def test_the_state_holds_values_and_passes_every_check_of_verify(name):
    report = verify(loads(DECLARED)[name], shapes=[Shape(1, 40, 40, 4, 2, 16, 16)], dtypes=["fp32"])
    assert report.passed, str(report)
    assert any(row.what.startswith("split at") for row in report.rows)


def test_a_padded_row_of_an_infinite_value_reaches_no_output():
    """v / y is infinite where nothing was loaded, and 0 * inf would be NaN."""
    text = '[over]\nfeature_map = "identity"\nscale = 1.0\nnormalize = "none"\n'
    text += 'value = "v/y[b,t]"\ninputs.y = { shape = ["b", "t"], grad = true }\n'
    for mask in ("full", "causal"):
        op = compile_op(loads(text + f'mask = "{mask}"\n')["over"])
        hold_exactly(op, Shape(1, 19, 19, 1, 1, 16, 20))


CONSTANT = """
[handed]
feature_map = "identity"
scale = 1.0
value = "exp(m[hkv])*v**0"
mask = "causal"
normalize = "none"
params.m = { shape = ["hkv"], grad = true }

[mapped]
feature_map = "exp(x)*exp(-x) + x*0"
scale = 1.0
log_decay = "-exp(0*w[k] + a[h])"
mask = "causal"
normalize = "sum"
params.w = { shape = ["k"] }
params.a = { shape = ["h"], grad = true }
"""


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
@pytest.mark.parametrize("name", ["handed", "mapped"])
def test_an_expression_that_is_the_same_for_every_channel_fills_its_tile(name, form):
    """sympy takes v out of v**0, and x out of exp(x)*exp(-x): one number a row is left."""
    op, shape = compile_op(loads(CONSTANT)[name]), Shape(1, 19, 19, 2, 1, 16, 20)
    inputs = wide(op, shape)
    out = op(*inputs.qkv, form=form, **inputs.tensors)
    ref = reference(op.variant, *inputs.qkv, inputs.tensors)
    assert float((out - ref).norm() / ref.norm()) < 1e-6
    if form != "recurrent":
        hold_exactly(op, shape, form=form)


def test_a_value_in_python_is_the_value_in_toml():
    dt, a = Input("dt", shape="b,t,h", grad=True), Param("a", shape="h", grad=True)
    made = Variant(
        "mamba", feature_map="identity", scale=1.0, log_decay=-dt[t, h] * exp(a[h]),
        value=dt[t, h] * attnc.v, mask=causal, normalize="none",
    )  # fmt: skip
    assert made == loads(DECLARED)["mamba"]
    w = Param("w", shape="c")
    assert "value w[c] * v" in repr(
        Variant("w", feature_map="softmax", scale=1.0, value=w[c] * attnc.v)
    )


def test_a_value_survives_a_round_trip_and_is_part_of_the_meaning():
    found = loads(DECLARED)
    for name, variant in found.items():
        assert loads(dumps(variant))[name] == variant
    plain = loads(DECLARED.replace('value = "dt[b,t,h]*v"\n', ""))["mamba"]
    same = loads(DECLARED.replace('value = "dt[b,t,h]*v"', 'value = "v"'))["mamba"]
    assert found["mamba"].digest != plain.digest == same.digest


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dt[b,t,h]", "value of 'mamba' does not read v"),
        ("dt[b,i,h]*v", "dt[b, i, h] is read at i, and a value has no i"),
        ("q*v", "unknown name 'q' in value of 'mamba'"),
        ("v > 0", "value of 'mamba' is a condition, not a number"),
    ],
)
def test_a_value_that_means_nothing_is_refused(value, message):
    with pytest.raises((DeclarationError, FieldError)) as caught:
        loads(DECLARED.replace("dt[b,t,h]*v", value))
    assert caught.value.message == message
