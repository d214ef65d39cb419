"""Decode of a sum whose folded term stands in a state: steps, prefills and one call agree."""

from __future__ import annotations

import secrets

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from attnc.cli.facts import Facts
from attnc.codegen.planning.planner import plans
from attnc.dsl.toml_file import loads
from attnc.ops.decode.sum_state import SumState
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.reference.state import monomials
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.draw import Shape, draw_inputs
from tests.sums import FACTORS, MAPS

DRAWN = loads(
    """
[hybrid]
params.mix = { shape = ["h"] }
terms = [
  { feature_map = "softmax", mask = "causal & window(5)", scale = "rsqrt(d)", factor = "sigmoid(mix[h])" },
  { feature_map = "taylor(2)", mask = "i - j >= 6", scale = "rsqrt(d)", factor = "1 + h" },
]

[gapped]
sink = "z[h]"
params.z = { shape = ["h"] }
params.kept = { shape = ["b", "hkv"] }
terms = [
  { feature_map = "0.2*s**2 + 0.3", mask = "i - j >= 9", scale = 0.25, factor = "exp(kept[b,hkv])" },
  { feature_map = "softmax", mask = "causal & window(2)", scale = 1.0, score = "softcap(s, 3) - 0.1*h*(i - j)" },
]

[overlapping]
terms = [
  { feature_map = "softmax", mask = "causal & window(12)", scale = "rsqrt(d)", factor = 0.5 },
  { feature_map = "elu(x) + 1", mask = "i - j >= 4", scale = 0.3 },
]

[at_once]
terms = [
  { feature_map = "softmax", mask = "causal & window(3)", scale = "rsqrt(d)" },
  { feature_map = "relu(x)**2 + 0.01", mask = "causal", scale = 0.3, factor = 2.0 },
]

[three]
sink = 0.5
terms = [
  { feature_map = "softmax", mask = "causal & window(3)", scale = 1.0, score = "s - 0.1*(i - j)" },
  { feature_map = "taylor(2)", mask = "i - j >= 5", scale = 0.2 },
  { feature_map = "relu(x)**2", mask = "causal & window(6)", scale = 0.1 },
]

[wide]
sink = "z[h]"
params.z = { shape = ["h"] }
terms = [
  { feature_map = "softmax", mask = "causal & window(299)", scale = "rsqrt(d)" },
  { feature_map = "taylor(2)", mask = "i - j >= 300", scale = "rsqrt(d)" },
]

[two_far]
terms = [
  { feature_map = "softmax", mask = "causal", scale = 1.0 },
  { feature_map = "taylor(2)", mask = "i - j >= 5", scale = 0.2 },
]

[windows]
terms = [
  { feature_map = "softmax", mask = "causal & window(3)", scale = 1.0 },
  { feature_map = "relu(x)**2", mask = "causal & window(6)", scale = 0.1 },
]
"""  # noqa: E501
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FOLDED = ("hybrid", "gapped", "overlapping", "at_once", "three")
TOKENS = 23


def drawn(variant, dtype, *, tokens=TOKENS, batch=2, heads=(4, 2), dims=(16, 24)):
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    shape = Shape(batch, tokens, tokens, *heads, *dims, strided=True)
    return draw_inputs(variant, shape, dtype, generator, torch.device("cpu"))


def begun(op, x):
    """A state for the sizes of x, the memory of its ring NaN."""
    state = op.init_state(
        x.q.shape[0], (x.q.shape[2], x.k.shape[2]), dim=(x.q.shape[3], x.v.shape[3]),
        dtype=x.q.dtype, device="cpu",
    )  # fmt: skip
    assert isinstance(state, SumState)
    state.cache.keys.fill_(float("nan"))
    state.cache.values.fill_(float("nan"))
    return state


def decoded(op, x, state, prefilled):
    """o and lse of prefills of the given lengths, then of steps."""
    outs, at = [], 0
    for length in (*prefilled, *(1 for _ in range(x.q.shape[1] - sum(prefilled)))):
        qkv = [t[:, at : at + length] for t in x.qkv]
        call = op.step if at >= sum(prefilled) else op.prefill
        out, lse, state = call(*qkv, state, return_lse=True, **x.tensors)
        outs.append((out, lse))
        at += length
    return torch.cat([o for o, _ in outs], 1), torch.cat([lse for _, lse in outs], 2)


def held_to_the_formula(variant, x, prefilled):
    """Rows and lse by the criterion of one call on all tokens; the state that is left."""
    op, dtype = compile_op(variant), x.q.dtype
    ref = attend(variant, *x.qkv, x.tensors, return_lse=True)
    pt = attend(variant, *x.qkv, x.tensors, dtype=torch.float32, rounding=dtype, return_lse=True)
    state = begun(op, x)
    out, lse = decoded(op, x, state, prefilled)
    # features that are rounded leave their sums as exact as that
    rounded = None if dtype == torch.float32 else pt.lse
    for verdict in (check(out, ref.out, pt.out), check_lse(lse, ref.lse, rounded)):
        assert verdict.sound, str(verdict)
    return state


@pytest.mark.rest(keep=7)
@pytest.mark.parametrize(
    ("prefilled", "dtype"),
    [((), "fp32"), ((3, 2), "bf16"), ((5, 11), "fp32"), ((5, 11), "fp16"), ((16, 1), "bf16")],
    ids=str,
)
@pytest.mark.parametrize("name", FOLDED)
def test_rows_are_the_formulas_however_the_tokens_came_in(name, prefilled, dtype):
    held_to_the_formula(DRAWN[name], drawn(DRAWN[name], DTYPES[dtype]), prefilled)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", FOLDED)
def test_the_state_holds_the_keys_that_the_last_row_read_and_the_ring_the_others(name):
    variant = DRAWN[name]
    x = drawn(variant, torch.float32)
    state = held_to_the_formula(variant, x, (7, 6))
    number = 0 if name == "gapped" else 1
    distance = {"hybrid": 6, "gapped": 9, "overlapping": 4, "at_once": 0, "three": 5}[name]
    term = variant.terms[number]
    keys = x.k[:, : TOKENS - distance].double().transpose(1, 2)
    if term.feature_map.phi is not None:
        keys = {
            "overlapping": torch.nn.functional.elu(keys) + 1,
            "at_once": keys.relu() ** 2 + 0.01,
        }[name]
    features = monomials(term, keys, lambda y: y)
    values = x.v[:, : TOKENS - distance].double().transpose(1, 2)
    matrix = features.transpose(-1, -2) @ values
    assert (state.matrix.matrix - matrix).norm() < 1e-5 * matrix.norm()
    sums = features.sum(2)
    assert (state.matrix.sums - sums).norm() < 1e-5 * sums.norm()
    assert state.lengths.tolist() == [TOKENS] * 2 and state.tokens == TOKENS
    for at in range(TOKENS - state.cache.capacity, TOKENS):
        assert torch.equal(state.cache.keys[:, at % state.cache.capacity], x.k[:, at])


@pytest.mark.parametrize(
    ("name", "kept"),
    [("hybrid", 7), ("gapped", 10), ("overlapping", 13), ("at_once", 4), ("three", 7)],
)
def test_a_ring_keeps_what_the_other_terms_see_and_each_key_until_it_enters(name, kept):
    state = compile_op(DRAWN[name]).init_state(1, 2, dim=16, device="cpu")
    assert state.cache.kind == "ring" and state.cache.capacity == kept
    keys = 2 * kept * 2 * 16 * 2
    features = state.matrix.matrix.shape[2]
    assert state.nbytes == keys + 2 * features * 17 * 4


def test_the_splits_of_a_wide_window_have_one_state_between_them():
    variant = DRAWN["wide"]
    x = drawn(variant, torch.float32, tokens=306, batch=1)
    held_to_the_formula(variant, x, (302,))
    request = Facts(decode=True, cache="folded", shape="1,301", dim="16,24", heads="4,2")
    assert plans(request.request(variant))[0].splits > 1


def test_sequences_of_different_lengths_take_a_step_together():
    op = compile_op(DRAWN["hybrid"])
    x = drawn(op.variant, torch.float32)
    states = []
    for b, length in enumerate((15, 4)):
        state = op.init_state(1, (4, 2), dim=(16, 24), dtype=torch.float32, device="cpu")
        op.prefill(*(t[b : b + 1, :length] for t in x.qkv), state, **x.tensors)
        states.append(state)
    both = begun(op, x)
    for b, state in enumerate(states):
        for mine, other in zip(
            (both.cache.keys, both.cache.values, both.lengths, *both.matrix.tensors),
            (state.cache.keys, state.cache.values, state.lengths, *state.matrix.tensors),
            strict=True,
        ):
            mine[b] = other[0]
    out, _ = op.step(*(t[:, 20:21] for t in x.qkv), both, **x.tensors)
    for b, length in enumerate((15, 4)):
        rows = [t[b : b + 1, [*range(length), 20]] for t in x.qkv]
        ref = op.reference(*rows, **x.tensors)[:, -1]
        assert (out[b : b + 1, 0] - ref[0]).norm() < 1e-5 * ref.norm()


def test_a_long_past_leaves_fp16_rows_finite_and_right():
    op = compile_op(DRAWN["hybrid"])
    x = drawn(op.variant, torch.float16, tokens=8)
    state = begun(op, x)
    op.prefill(*(t[:, :7] for t in x.qkv), state, **x.tensors)
    # as if each key had come 2**19 times over: sums beyond fp16's 65,504
    for tensor in state.matrix.tensors:
        tensor.mul_(2.0**19)
    state.lengths.fill_(7 * 2**19)
    ring = state.cache
    ring.keys.copy_(ring.keys.roll(7 * 2**19 - 7, 1))
    ring.values.copy_(ring.values.roll(7 * 2**19 - 7, 1))
    out, _ = op.step(*(t[:, 7:] for t in x.qkv), state, **x.tensors)
    far = attend(op.folded.variant, x.q[:, 7:], x.k[:, :1], x.v[:, :1], {}).out
    near = attend(op.near.variant, *(t[:, 2:] for t in x.qkv), x.tensors).out[:, -1:]
    assert out.isfinite().all()
    assert (out - far).abs().max() < (near - far).abs().max() * 1e-2 + 2e-2 * far.abs().max()


def test_the_same_step_gives_the_same_bits_and_a_clone_is_its_own():
    op = compile_op(DRAWN["three"])
    x = drawn(op.variant, torch.bfloat16)
    state = begun(op, x)
    op.prefill(*(t[:, :22] for t in x.qkv), state)
    one = [t[:, 22:] for t in x.qkv]
    outs = [op.step(*one, state.clone())[0] for _ in range(2)]
    assert torch.equal(*outs)
    assert state.tokens == 22
    state.reset()
    assert state.tokens == 0 and not state.matrix.matrix.any()
    again, _ = op.prefill(*x.qkv, state)
    ref = op.reference(*x.qkv)
    assert (again - ref).norm() < 2e-2 * ref.norm()


@st.composite
def folds(draw):
    """The TOML of a window and a term before it, and where its prefills end."""
    near = draw(st.sampled_from(["softmax", "softmax", "0.2*s**2 + 0.3", "elu(x) + 1"]))
    score = draw(st.sampled_from(["s", "s - slope[h]*(i - j)", "softcap(s, 4)"]))
    factors = [draw(st.sampled_from(FACTORS)) for _ in range(2)]
    lines = ["[drawn]", 'params.slope = { shape = ["h"] }', 'params.bias = { shape = ["h"] }']
    lines += ['params.shared = { shape = ["hkv"] }', "params.gain = { shape = [] }"]
    if draw(st.booleans()):
        lines.append('sink = "bias[h]"')
    lines += ["[[drawn.terms]]", f'feature_map = "{near}"', 'scale = "0.3"']
    lines += [f'mask = "causal & window({draw(st.integers(0, 9))})"']
    lines += [f'score = "{score}"'] if near == "softmax" else []
    lines += [f'factor = "{factors[0]}"'] if factors[0] else []
    lines += ["[[drawn.terms]]", f'feature_map = "{draw(st.sampled_from(MAPS))}"', 'scale = "0.3"']
    lines += [f'mask = "i - j >= {draw(st.integers(0, 12))}"']
    lines += [f'factor = "{factors[1]}"'] if factors[1] else []
    order = draw(st.booleans())
    text = "\n".join(lines)
    if order:
        head, first, second = text.split("[[drawn.terms]]")
        text = "[[drawn.terms]]".join([head, second + "\n", first])
    prefilled = draw(st.lists(st.integers(1, 9), max_size=2))
    heads = draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    dims = draw(st.sampled_from([(16, 16), (20, 24), (16, 40)]))
    return text, tuple(prefilled), heads, dims, draw(st.sampled_from(sorted(DTYPES)))


@pytest.mark.rest
@given(call=folds())
@settings(max_examples=12)
@pytest.mark.timeout(300)
def test_any_window_with_any_term_before_it_decodes_as_one_call(call):
    text, prefilled, heads, dims, dtype = call
    note(text)
    variant = loads(text)["drawn"]
    tokens = sum(prefilled) + 4
    x = drawn(variant, DTYPES[dtype], tokens=tokens, heads=heads, dims=dims)
    positive = {n: t.abs() + 0.1 if n == "gain" else t for n, t in x.tensors.items()}
    x = type(x)(*x.qkv, positive) if positive else x
    held_to_the_formula(variant, x, prefilled)
