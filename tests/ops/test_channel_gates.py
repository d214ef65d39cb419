"""Decays a channel (gated linear attention): every form, however strong the gates.

The oracle is the recurrence as the paper has it, S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T, in
numpy, and autograd through the reference that is held against it.
"""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from torch.autograd import gradcheck

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.criterion import check, check_agreement, check_gradient, check_state
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.gradients import op_gradients
from tests.drawn_calls import calls
from tests.ops.test_gradients import hold_exactly
from tests.ops.test_property import SETTINGS, hold
from tests.strategies import channel_declarations

VARIANTS = loads(
    """
[gla]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "g[b,t,h,k]"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h", "k"], grad = true }

[shared]
feature_map = "elu(x) + 1"
scale = 0.5
log_decay = "-exp(a[h,k])*softplus(g[b,t,hkv,k]) - rate - w[h]"
value = "gain[c]*v"
mask = "causal"
normalize = "sum"
params.a = { shape = ["h", "k"], grad = true }
params.w = { shape = ["h"], grad = true }
params.rate = { shape = [], grad = true }
params.gain = { shape = ["c"], grad = true }
inputs.g = { shape = ["b", "t", "hkv", "k"], grad = true }

[constant]
feature_map = "2*s"
scale = 0.25
log_decay = "-rate[k]"
mask = "causal"
normalize = "none"
params.rate = { shape = ["k"], grad = true }

[window]
feature_map = "silu(x)"
scale = "rsqrt(d)"
log_decay = "-softplus(g[b,t,k])*u[b,t]"
mask = "causal & (window(9) | prefix(3))"
normalize = "none"
inputs.g = { shape = ["b", "t", "k"], grad = true }
inputs.u = { shape = ["b", "t"], grad = true }
"""
)
OPS = {name: compile_op(variant) for name, variant in VARIANTS.items()}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")


def drawn(name: str, dtype: str, shape: Shape, seed: int | None = None) -> Inputs:
    generator = torch.Generator().manual_seed(secrets.randbits(31) if seed is None else seed)
    return draw_inputs(VARIANTS[name], shape, DTYPES[dtype], generator, CPU)


def with_gates(inputs: Inputs, kind: str) -> Inputs:
    """Gates of -20 a token everywhere, or of some tokens and channels among weak ones."""
    gates = torch.full_like(inputs.tensors["g"], -20.0)
    if kind == "mixed":
        weak = torch.rand(gates.shape) < 0.5
        # the second half of every channel forgets next to nothing
        weak[:, gates.shape[1] // 2 :] = True
        gates = torch.where(weak, -0.01 * torch.rand(gates.shape), gates)
    return Inputs(*inputs.qkv, {**inputs.tensors, "g": gates})


def recurrence(x: Inputs, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's recurrence, token by token, with a key's state for each query head."""
    q, k, v = (t.double().numpy() for t in x.qkv)
    g = x.tensors["g"].double().numpy()
    group = q.shape[2] // k.shape[2]
    out = np.zeros((*q.shape[:3], v.shape[3]))
    state = state.copy()
    for b, t, h in np.ndindex(*q.shape[:3]):
        decay = np.exp(g[b, t, h])[:, None]
        state[b, h] = decay * state[b, h] + np.outer(k[b, t, h // group], v[b, t, h // group])
        out[b, t, h] = q[b, t, h] @ state[b, h] / np.sqrt(q.shape[3])
    return out, state


@pytest.mark.parametrize("gates", ["drawn", "strong", "mixed"])
def test_the_reference_is_the_recurrence_of_the_paper(gates):
    x = drawn("gla", "fp32", Shape(2, 13, 13, 4, 2, 16, 24))
    x = x if gates == "drawn" else with_gates(x, gates)
    start = np.random.default_rng(secrets.randbits(31)).normal(size=(2, 4, 16, 24))
    found = attend(
        VARIANTS["gla"], *x.qkv, x.tensors, initial_state=torch.tensor(start), return_state=True
    )
    out, state = recurrence(x, start)
    np.testing.assert_allclose(found.out.numpy(), out, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.state.numpy(), state, rtol=1e-10, atol=1e-10)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_is_the_formula_and_every_other_form(name, tokens, dtype):
    x = drawn(name, dtype, Shape(1, tokens, tokens, 2, 1, 24, 40, strided=True))
    ref = attend(VARIANTS[name], *x.qkv, x.tensors).out
    pt = attend(VARIANTS[name], *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype]).out
    forms = [form for form in OPS[name].forms() if tokens == 1 or form != "recurrent"]
    found = {form: OPS[name](*x.qkv, form=form, **x.tensors) for form in forms}
    for form, out in found.items():
        verdict = check(out, ref, pt)
        assert verdict.sound, f"{form}: {verdict}"
        for other in found.values():
            verdict = check_agreement(out, other, ref, pt)
            assert verdict.sound, f"{form}: {verdict}"


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", ["strong", "mixed"])
def test_gates_as_strong_as_minus_20_a_token_keep_every_digit(gates, dtype):
    """A chunk of 64 such tokens decays by exp(-1280): a factor of one token overflows any type."""
    x = with_gates(drawn("gla", dtype, Shape(1, 67, 67, 2, 2, 16, 32)), gates)
    ref = attend(VARIANTS["gla"], *x.qkv, x.tensors).out
    pt = attend(VARIANTS["gla"], *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype]).out
    for form in OPS["gla"].forms():
        out = OPS["gla"](*x.qkv, form=form, **x.tensors)
        verdict = check(out, ref, pt)
        assert verdict.sound, f"{form}: {verdict}"
        if dtype == "fp32":
            # sums of fp32 would leave 1e-5 of a weak gate that comes after strong ones
            assert verdict.error < 5e-7, f"{form}: {verdict}"


def gradients(name: str, x: Inputs, form: str, do: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (*x.qkv, *x.tensors.values())]
    out = OPS[name](*leaves[:3], form=form, **dict(zip(x.tensors, leaves[3:], strict=True)))
    found = torch.autograd.grad(out, leaves, do)
    return dict(zip(("q", "k", "v", *x.tensors), found, strict=True))


def hold_gradients(name: str, dtype: str, form: str, x: Inputs) -> dict[str, float]:
    """Every gradient by the criterion; the errors of each, relative to its size."""
    do = torch.randn((*x.q.shape[:3], x.v.shape[3])).to(x.q.dtype)
    found = gradients(name, x, form, do)
    ref = reference_gradients(VARIANTS[name], *x.qkv, x.tensors, Incoming(do))
    pt = reference_gradients(
        VARIANTS[name], *x.qkv, x.tensors, Incoming(do), dtype=torch.float32, rounding=x.q.dtype
    )
    errors = {}
    for key, expected in ref.items():
        if expected.numel() == 1 and dtype != "fp32":
            continue  # what eager errs by in one number is one draw, and no measure
        eager = float((pt[key].double() - expected).abs().max())
        verdict = check_gradient(
            found[key], expected, eager, x.q.dtype, reduced=key not in {"q", "k", "v"}
        )
        assert verdict.sound, f"{dtype} {form} {key}: {verdict}"
        errors[key] = float((found[key].double() - expected).norm() / expected.norm())
    return errors


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "form"),
    [("gla", "parallel"), ("gla", "chunked"), ("shared", "parallel"), ("shared", "chunked"),
     ("constant", "chunked"), ("window", "parallel")],
)  # fmt: skip
def test_gradients_are_those_of_the_formula(name, form, dtype):
    hold_gradients(name, dtype, form, drawn(name, dtype, Shape(1, 37, 37, 4, 2, 24, 40)))


@pytest.mark.parametrize("form", ["parallel", "chunked"])
@pytest.mark.parametrize("gates", ["strong", "mixed"])
def test_gradients_of_strong_gates_keep_their_digits(gates, form):
    """With all gates at -20 that of a gate is about 1e-9: a token with itself would drown it."""
    x = with_gates(drawn("gla", "fp32", Shape(1, 67, 67, 2, 2, 16, 24)), gates)
    errors = hold_gradients("gla", "fp32", form, x)
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize(("name", "form"), [("shared", "chunked"), ("window", "parallel")])
def test_gradcheck_passes(name, form):
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    x = draw_inputs(VARIANTS[name], Shape(1, 21, 21, 2, 1, 16, 16), torch.float64, generator, CPU)
    leaves = [t.double().requires_grad_() for t in (*x.qkv, *x.tensors.values())]

    def call(q, k, v, *tensors):
        return OPS[name](q, k, v, form=form, **dict(zip(x.tensors, tensors, strict=True)))

    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gla", "shared"])
def test_a_sequence_cut_anywhere_goes_on_from_its_state(name, dtype):
    """A prefill of two segments of chunks, a short one, then single steps of decode."""
    variant, op = VARIANTS[name], OPS[name]
    x = drawn(name, dtype, Shape(1, 560, 560, 2, 1, 16, 24))
    ref = attend(variant, *x.qkv, x.tensors, return_state=True)
    pt = attend(variant, *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype],
                return_state=True)  # fmt: skip
    outs, state = [], None
    for part in (slice(0, 530), slice(530, 557), slice(557, 558), slice(558, 559), slice(559, 560)):
        piece = x.tokens(variant, part)
        call = op.step if part.stop - part.start == 1 else op.prefill
        out, state = call(*piece.qkv, state, **piece.tensors)
        outs.append(out)
    for verdict in (
        check(torch.cat(outs, 1), ref.out, pt.out),
        check_state(state.packed(), ref.state, pt.state, DTYPES[dtype]),
    ):
        assert verdict.sound, str(verdict)


@pytest.mark.parametrize(("name", "tokens"), [("gla", 41), ("shared", 41), ("shared", 530)])
def test_gradients_pass_through_states(name, tokens):
    """fp64: of the initial state, and of what comes in at the final one, over several segments."""
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    shape = Shape(1, tokens, tokens, 2, 1, 16, 16)
    x = draw_inputs(VARIANTS[name], shape, torch.float64, generator, CPU)
    x = Inputs(*x.qkv, {key: t.double() for key, t in x.tensors.items()})
    columns = 17 if name == "shared" else 16
    initial = torch.rand((1, 2, 16, columns), dtype=torch.float64)
    incoming = Incoming(torch.randn_like(x.v.repeat(1, 1, 2, 1)), None, torch.randn_like(initial))
    expected = reference_gradients(
        VARIANTS[name], *x.qkv, x.tensors, incoming, initial_state=initial
    )
    found = op_gradients(OPS[name], x, incoming, form="chunked", initial_state=initial)
    for key, gradient in expected.items():
        assert gradient.norm() > 0, key
        assert (found[key] - gradient).norm() <= 1e-10 * gradient.norm(), key


@pytest.mark.parametrize("name", ["constant", "window"])
def test_decays_a_channel_pack_whether_of_a_token_or_not_and_under_any_mask(name):
    packed = OPS[name].over_sequences()
    hold_exactly(packed, Shape(1, 40, 40, 2, 1, 16, 16, sequences=3), packed.forms()[-1])


def test_a_query_that_is_not_the_last_key_is_served_by_the_parallel_form():
    """TQ below and above TK: rows before token 0 see nothing."""
    for queries, keys in ((5, 23), (23, 5)):
        x = drawn("gla", "fp32", Shape(1, queries, keys, 2, 1, 16, 24))
        ref = attend(VARIANTS["gla"], *x.qkv, x.tensors).out
        verdict = check(OPS["gla"](*x.qkv, **x.tensors), ref, ref)
        assert verdict.sound, str(verdict)


@settings(SETTINGS, max_examples=6)
@given(calls(declared=channel_declarations(), tokens=40))
def test_a_drawn_decay_a_channel_is_its_formula_under_any_mask(call):
    verdict = hold(call)
    assert verdict.passed, str(verdict)


@pytest.mark.rest
@settings(SETTINGS, max_examples=4, phases=[Phase.generate])
@given(calls(declared=channel_declarations(causal=True, grad=True), square=True, tokens=70))
def test_gradients_of_a_drawn_decay_a_channel_are_those_of_the_formula(call):
    hold_exactly(compile_op(call.variant), call.shape, "chunked", state=True)
