"""The recurrent form: the state's definition, token by token, held against the fp64 reference."""

from __future__ import annotations

import secrets

import pytest
import torch

from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.dsl.toml_file import loads
from attnc.errors import PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.shipped import shipped
from attnc.ops.verification.criterion import check, check_state
from attnc.ops.verification.draw import Shape, draw_inputs

DRAWN = loads(
    """
[gated]
feature_map = "1 + s + s**2/2"
scale = "rsqrt(d)"
log_decay = "-softplus(g[b,t,h])"
mask = "causal"
normalize = "sum"
inputs.g = { shape = ["b", "t", "h"], grad = true }

[even]
feature_map = "0.25 + s**2"
scale = "rsqrt(d)"
mask = "causal"
normalize = "sum"

[shared]
feature_map = "silu(x)"
scale = 0.5
log_decay = "-rate"
mask = "causal"
normalize = "none"
params.rate = { shape = [] }

[constant]
feature_map = "0.5*s - 1"
scale = 1.0
log_decay = "-0.1 / (1 + h)"
mask = "causal"
normalize = "none"
"""
)
# relu2 and rebased keep the states of linear and based, of other numbers
KEPT = {name: v for name, v in shipped().items() if name not in {"relu2", "rebased"}}
VARIANTS = {name: v for name, v in {**KEPT, **DRAWN}.items() if v.family == "state"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def head_dims(name):
    return (16, 40) if VARIANTS[name].feature_map.degree > 1 else (24, 72)


def drawn(name, dtype, tokens=19, batch=2):
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    shape = Shape(batch, tokens, tokens, 4, 2, *head_dims(name), strided=True)
    return draw_inputs(VARIANTS[name], shape, dtype, generator, torch.device("cpu"))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_rows_and_state_are_those_of_the_reference_wherever_the_sequence_is_cut(name, dtype):
    variant, op = VARIANTS[name], compile_op(VARIANTS[name])
    x = drawn(name, DTYPES[dtype])
    ref = attend(variant, *x.qkv, x.tensors, return_state=True)
    pt = attend(variant, *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype],
                return_state=True)  # fmt: skip
    outs, state = [], None
    for part in (slice(0, 7), slice(7, 8), slice(8, 19)):
        piece = x.tokens(variant, part)
        out, state = op(
            *piece.qkv, form="recurrent", initial_state=state, return_state=True, **piece.tensors
        )
        outs.append(out)
    for verdict in (
        check(torch.cat(outs, 1), ref.out, pt.out),
        check_state(state, ref.state, pt.state, DTYPES[dtype]),
    ):
        assert verdict.sound, str(verdict)


def test_the_state_that_is_given_stays_as_it_was():
    x = drawn("linear", torch.float32)
    op = compile_op(VARIANTS["linear"])
    _, state = op(*x.qkv, form="recurrent", return_state=True)
    before = state.clone()
    op(*x.qkv, form="recurrent", initial_state=state, return_state=True)
    assert torch.equal(state, before)


@pytest.mark.parametrize("name", ["based", "lightning", "gated"])
def test_training_through_the_recurrent_form_takes_the_chunked_forms_gradients(name):
    x = drawn(name, torch.float32, batch=1)
    op = compile_op(VARIANTS[name])
    found = {}
    for form in ("recurrent", "chunked"):
        inputs = [t.clone().requires_grad_() for t in (*x.qkv, *x.tensors.values())]
        named = dict(zip(x.tensors, inputs[3:], strict=True))
        out = op(*inputs[:3], form=form, **named)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        found[form] = torch.autograd.grad((out * weight).sum(), inputs)
    for mine, chunked in zip(found["recurrent"], found["chunked"], strict=True):
        assert chunked.norm() > 0
        assert (mine - chunked).norm() <= 1e-5 * chunked.norm()
    backward = plans(
        Request(VARIANTS[name], op.plan().device, head_dims(name), form="recurrent",
                phase="backward")
    )[0]  # fmt: skip
    assert backward.form == "chunked" and "recurrent" in backward.form_reason


def test_a_state_that_no_program_can_hold_is_refused_with_its_size():
    op = compile_op(loads('[big]\nfeature_map = "taylor(3)"\nscale = 1.0\nmask = "causal"\n'
                          'normalize = "none"')["big"])  # fmt: skip
    with pytest.raises(PlanError, match=r"no tile of 'big' .* holds its state") as refused:
        op.plan(dim=(64, 64), form="recurrent")
    assert "47,905 features by 16 columns" in str(refused.value.notes)


def test_a_step_costs_what_its_state_takes_of_memory():
    plan = compile_op(VARIANTS["lightning"]).plan(dim=(64, 64), form="recurrent")
    cost, work = plan.passes[0].cost, plan.workload
    tokens = 4 * work.batch * work.tq * work.hq * 64 * 2
    assert cost.hbm_bytes == tokens + 2 * work.batch * work.hq * 64 * 64 * 4
