"""Decode: one long prefill, prefills in pieces and single steps are one and the same."""

from __future__ import annotations

import secrets

import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.errors import AttncError
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
inputs.g = { shape = ["b", "t", "h"] }

[ssd]
feature_map = "identity"
scale = 1.0
log_decay = "-softplus(dt[b,t,h])"
value = "dt[b,t,h]*v + gain[c]"
mask = "causal"
normalize = "none"
inputs.dt = { shape = ["b", "t", "h"] }
params.gain = { shape = ["c"] }

[by_key_head]
feature_map = "silu(x)"
scale = 0.5
log_decay = "-rate[hkv]"
mask = "causal"
normalize = "none"
params.rate = { shape = ["hkv"] }

[banded]
feature_map = "elu(x) + 1"
scale = 1.0
mask = "causal & window(20)"
normalize = "sum"
"""
)
VARIANTS = {**shipped(), **DRAWN}
# relu2 and rebased keep the states of linear and based, of other numbers
LEFT_OUT = {"banded", "relu2", "rebased"}
STATES = sorted(n for n, v in VARIANTS.items() if v.family == "state" and n not in LEFT_OUT)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def drawn(name, dtype, tokens, batch=2, heads=(4, 2)):
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    dims = (16, 40) if VARIANTS[name].feature_map.degree > 1 else (32, 72)
    shape = Shape(batch, tokens, tokens, *heads, *dims, strided=True)
    return draw_inputs(VARIANTS[name], shape, dtype, generator, torch.device("cpu"))


def decoded(op, x, prefilled, tokens, state=None):
    """Rows of prefills of the given lengths, then of single steps; and the state."""
    outs, at = [], 0
    for length in (*prefilled, *(1 for _ in range(tokens - sum(prefilled)))):
        piece = x.tokens(op.variant, slice(at, at + length))
        one_by_one = at >= sum(prefilled)
        if state is None and one_by_one:
            state = op.init_state(
                piece.q.shape[0], (piece.q.shape[2], piece.k.shape[2]),
                dim=(piece.q.shape[3], piece.v.shape[3]), dtype=piece.q.dtype, device="cpu",
            )  # fmt: skip
        call = op.step if one_by_one else op.prefill
        out, state = call(*piece.qkv, state, **piece.tensors)
        outs.append(out)
        at += length
    return torch.cat(outs, 1), state


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("prefilled", [(19, 1, 3), (5,)], ids=str)
@pytest.mark.parametrize("name", STATES)
def test_a_state_is_the_references_however_the_tokens_came_in(name, prefilled, dtype):
    variant, op = VARIANTS[name], compile_op(VARIANTS[name])
    tokens = 23 if sum(prefilled) > 5 else 9
    x = drawn(name, DTYPES[dtype], tokens, batch=1)
    ref = attend(variant, *x.qkv, x.tensors, return_state=True)
    pt = attend(variant, *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype],
                return_state=True)  # fmt: skip
    out, state = decoded(op, x, prefilled, tokens)
    for verdict in (
        check(out, ref.out, pt.out),
        check_state(state.packed(), ref.state, pt.state, DTYPES[dtype]),
    ):
        assert verdict.sound, str(verdict)


def test_a_step_writes_the_tensors_of_the_state_it_was_given():
    op, x = compile_op(VARIANTS["linear"]), drawn("linear", torch.float32, 1)
    state = op.init_state(2, (4, 2), dim=(32, 72), dtype=torch.float32, device="cpu")
    matrix, sums = state.matrix, state.sums
    other = state.clone()
    _, after = op.step(*x.qkv, state)
    assert after is state and state.matrix is matrix and state.sums is sums
    assert matrix.norm() > 0 and sums.norm() > 0
    assert other.matrix.norm() == 0
    state.reset()
    assert matrix.norm() == 0 and sums.norm() == 0


def test_a_state_of_a_call_and_the_state_of_decode_are_one():
    op, x = compile_op(VARIANTS["based"]), drawn("based", torch.float32, 12)
    first, last = (x.tokens(op.variant, part) for part in (slice(0, 11), slice(11, 12)))
    _, packed = op(*first.qkv, return_state=True)
    state = op.init_state(2, (4, 2), dim=(16, 40), dtype=torch.float32, device="cpu")
    state.fill(packed)
    assert torch.equal(state.packed(), packed)
    out, _ = op.step(*last.qkv, state)
    whole = op(*x.qkv)
    assert (out - whole[:, 11:]).norm() < 1e-5 * whole[:, 11:].norm()


def states():
    op = compile_op(VARIANTS["lightning"])
    x = drawn("lightning", torch.float32, 2)
    state = op.init_state(2, (4, 2), dim=(32, 72), dtype=torch.float32, device="cpu")
    one = x.tokens(op.variant, slice(0, 1))
    slope = x.tensors["slope"]
    return op, x, one, state, slope


def refused(name):
    op, x, one, state, slope = states()
    half = [t.half() for t in one.qkv]
    normalised = compile_op(VARIANTS["linear"])
    calls = {
        "two tokens": lambda: op.step(*x.qkv, state, slope=slope),
        "a tensor": lambda: op.step(*one.qkv, state.matrix, slope=slope),
        "another batch": lambda: op.step(*(t[:1] for t in one.qkv), state, slope=slope),
        "no sums": lambda: normalised.step(*one.qkv, state),
        "no slope": lambda: op.step(*one.qkv, state),
        "grad": lambda: op.step(one.q.clone().requires_grad_(), *one.qkv[1:], state, slope=slope),
        "a precision": lambda: op.step(*half, state, precision="bf16", slope=slope),
        "no dims": lambda: op.init_state(1, 4, device="cpu"),
        "heads": lambda: op.init_state(1, (3, 2), dim=32, device="cpu"),
        "a band": lambda: compile_op(VARIANTS["banded"]).init_state(1, 1, dim=32),
        "another packed": lambda: state.fill(torch.zeros(2, 4, 32, 73)),
    }
    with pytest.raises(AttncError) as raised:
        calls[name]()
    return str(raised.value)


TEXTS = """
== two tokens
error[A300]: a step takes one token, not 2 queries and 2 keys
  hint: prefill takes several
== a tensor
error[A300]: the state of 'lightning' is a Tensor, not a MatrixState
  hint: init_state makes one
== another batch
error[A300]: the state is [2, 4, 32, 72], this call asks for [1, 4, 32, 72] and no sums
  note: the state of 'lightning' is [B, HS, F, V]; see docs/state.md
== no sums
error[A300]: the state is [2, 4, 32, 72], this call asks for [2, 2, 32, 72] and sums
  note: the state of 'linear' is [B, HS, F, V]; see docs/state.md
== no slope
error[A300]: 'lightning' needs param 'slope'
  note: declared with shape [h] = [4]
  hint: pass slope=... to the call
== grad
error[A300]: decode has no backward: its state is updated in place
  hint: call it under torch.no_grad()
  hint: a call with initial_state and return_state passes gradients through both
== a precision
error[A300]: precision 'bf16' is neither 'fp32' nor 'tf32'
== no dims
error[A300]: 'lightning' declares no head dims, and a state has some
  hint: pass dim=64, or dim=(K, V)
== heads
error[A300]: 3 query heads are not a multiple of 2 key/value heads
== a band
error[A200]: 'banded' has no decode
  note: the mask is not exactly causal, and a fold over tokens sees just j <= i
  hint: use mask = causal, or call the op on the whole sequence
== another packed
error[A300]: a state of shape [2, 4, 32, 73] does not fit one of [2, 4, 32, 72]
  note: the state is [B, HS, F, columns]; see docs/state.md
"""
EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_does_not_fit_is_refused_and_the_text_says_why(name):
    assert refused(name) == EXPECTED[name]
