"""Sums of terms under one normaliser: one kernel forward, two backward, against the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from attnc.dsl import loads
from attnc.errors import InputError, PlanError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_gradients import function_of, hold_exactly, wide

# every kind of weight, mask, factor and declared tensor
DECLARED = """
[windowed]
dim = { qk = 16, v = 32 }
params.mix = { shape = ["h"], grad = true }
terms = [
  { feature_map = "softmax", mask = "causal & window(19)", scale = "rsqrt(d)", factor = "sigmoid(mix[h])" },
  { feature_map = "taylor(2)", mask = "i - j >= 20", scale = "rsqrt(d)" },
]

[mixed]
value = "v*v + w[c]"
sink = "z[h]"
params.w = { shape = ["c"], grad = true }
params.z = { shape = ["h"], grad = true }
params.slope = { shape = ["h"], grad = true }
params.m = { shape = [], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

[[mixed.terms]]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal & window(40)"
factor = "m*slope[h]"

[[mixed.terms]]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s - slope[h]*(i - j) + g[b,j,h] - g[b,i,h]"
mask = "(causal & window(9)) | (j < 4) & causal"
factor = 0.5

[[mixed.terms]]
feature_map = "(1 + s)**2"
scale = -0.2
mask = "j >= i + 3"
factor = "softplus(slope[h])"

[bounded]
inputs.n = { shape = ["b"] }
inputs.wide = { shape = ["h"] }

[[bounded.terms]]
feature_map = "softmax"
scale = 1.0
mask = "causal & window(wide[h])"

[[bounded.terms]]
feature_map = "relu(x)**2"
scale = 0.1
mask = "prefix(n[b])"
"""  # noqa: E501
SHAPES = [Shape(2, 75, 75, 2, 1, 16, 32), Shape(1, 37, 80, 4, 2, 20, 32),
          Shape(1, 80, 37, 1, 1, 16, 16), Shape(1, 1, 50, 2, 2, 16, 16)]  # fmt: skip


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, mix: np.ndarray):
    """`windowed` as loops over single numbers: o [T, H, V] and the log of the normaliser."""
    tokens, heads, width = q.shape
    out, lse = np.zeros((tokens, heads, v.shape[-1])), np.zeros((heads, tokens))
    for h in range(heads):
        for i in range(tokens):
            total = 0.0
            for j in range(i + 1):
                s = float(q[i, h] @ k[j, h]) / math.sqrt(width)
                near = math.exp(s) / (1 + math.exp(-mix[h]))
                weight = near if i - j < 20 else 1 + s + s * s / 2
                total += weight
                out[i, h] += weight * v[j, h]
            out[i, h] /= total
            lse[h, i] = math.log(total)
    return out, lse


def test_a_sum_of_terms_is_one_quotient_over_all_keys(ops):
    q, k, v = (torch.randn(1, 60, 2, 16) for _ in range(3))
    mix = torch.randn(2)
    out, lse = ops["windowed"](q, k, v, mix=mix, return_lse=True)
    expected = by_hand(*(x[0].double().numpy() for x in (q, k, v)), mix.numpy())
    for found, wanted in ((out, expected[0]), (lse, expected[1])):
        torch.testing.assert_close(found[0].double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", loads(DECLARED))
def test_every_tensor_of_a_sum_of_terms_has_its_gradient(name, shape, ops):
    hold_exactly(ops[name], shape)


def test_gradcheck_passes_for_terms(ops):
    call, leaves = function_of(
        ops["mixed"], wide(ops["mixed"], Shape(1, 30, 30, 2, 1, 16, 16)), None
    )
    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", loads(DECLARED))
def test_a_sum_of_terms_passes_verify_in_every_dtype(name, ops):
    shapes = (Shape(1, 37, 60, 2, 1, 24, 32, strided=True),)
    report = verify(ops[name].variant, dtypes=("fp32", "bf16", "fp16"), shapes=shapes, seed=5)
    assert report.passed, str(report)


@pytest.mark.parametrize("size", [-400.0, 400.0])
def test_scores_of_any_size_neither_overflow_nor_vanish(size, ops):
    """A row that sees its window alone, all scores far from 0, and rows that see a polynomial too.

    With the maximum clamped at 0 rows of small scores would give 0; without the polynomial's part
    in it, rows would overflow.
    """
    q = torch.ones(1, 50, 2, 16)
    k = torch.full((1, 50, 2, 16), size / 4) + 0.1 * torch.randn(1, 50, 2, 16)
    v, mix = torch.randn(1, 50, 2, 16), torch.zeros(2)
    out, lse = ops["windowed"](q, k, v, mix=mix, return_lse=True)
    ref, ref_lse = ops["windowed"].reference(q, k, v, mix=mix, return_lse=True)
    torch.testing.assert_close(out.double(), ref, rtol=0, atol=2e-4)
    torch.testing.assert_close(lse.double(), ref_lse, rtol=0, atol=1e-3)
    assert out[:, :20].abs().max() > 0.5


def test_gradients_stay_finite_for_scores_of_any_size(ops):
    for size in (-400.0, 400.0):
        q, k, v = (torch.randn(1, 50, 2, 16) for _ in range(3))
        leaves = [
            x.requires_grad_() for x in (q, (k * 0.1 + size / 16).detach(), v, torch.zeros(2))
        ]
        out = ops["windowed"](leaves[0] * 0.1 + 1, *leaves[1:3], mix=leaves[3])
        grads = torch.autograd.grad(out.square().sum(), leaves)
        assert all(grad.isfinite().all() for grad in grads)
        assert grads[2].abs().max() > 0


def test_a_factor_of_zero_takes_a_term_out_and_still_has_a_gradient():
    text = DECLARED.replace('"sigmoid(mix[h])"', '"mix[h]"')
    op = compile_op(loads(text)["windowed"])
    q, k, v = (torch.randn(1, 60, 1, 16) for _ in range(3))
    mix = torch.zeros(1, requires_grad=True)
    out = op(q, k, v, mix=mix)
    assert (out[:, :20] == 0).all(), "the first rows see nothing else"
    far = out[:, 20:].square().sum()
    (grad,) = torch.autograd.grad(far, mix)
    # a difference of the fp64 formula, whose step is small beside what it bends by
    step = torch.full((1,), 1e-7)
    after, there = (op.reference(q, k, v, mix=at)[:, 20:].square().sum() for at in (step, 0 * step))
    slope = (after - there) / step.double()
    torch.testing.assert_close(grad.double(), slope, rtol=1e-4, atol=1e-4)


def test_packed_sequences_of_terms_are_calls_of_their_own(ops):
    op = ops["windowed"]
    q, k, v = (torch.randn(1, 90, 2, 16) for _ in range(3))
    mix, starts = torch.randn(2), torch.tensor([0, 33, 33, 90], dtype=torch.int32)
    packed = op(q, k, v, mix=mix, cu_seqlens_q=starts, cu_seqlens_k=starts)
    alone = [op(q[:, a:b], k[:, a:b], v[:, a:b], mix=mix) for a, b in ((0, 33), (33, 90))]
    assert torch.equal(packed, torch.cat(alone, 1))


def test_packed_sequences_are_refused_where_a_term_reads_the_number_of_its_batch_entry():
    text = DECLARED.replace('score = "s - slope', 'score = "s - b - slope')
    with pytest.raises(InputError, match="it reads the number b of a batch entry"):
        compile_op(loads(text)["mixed"]).over_sequences()


def tiles_of(op: Op, tokens: int) -> list[tuple[str, str]]:
    """Bounds of the forward's loops, a list a walk."""
    (step,) = op.plan(dim=(16, 32), dtype="bf16", form="online").passes
    return [(loop.start, loop.stop) for walk in step.kernel.walks for loop in walk.loops]


def test_each_term_has_loops_of_its_own_tiles(ops):
    """`windowed`: masked, full and masked tiles of the window; full and masked ones before it."""
    assert tiles_of(ops["windowed"], 60) == [
        ("lo", "full_lo"), ("full_lo", "full_hi"), ("full_hi", "hi"),
        ("0", "full_hi"), ("full_hi", "hi"),
    ]  # fmt: skip


def test_a_tile_that_no_term_sees_is_not_loaded(ops):
    """Keys of NaN behind both masks leave no trace; where they are loaded, 0 * NaN shows."""
    text = """
[apart]
terms = [
  { feature_map = "softmax", mask = "causal & window(15)", scale = 1.0 },
  { feature_map = "taylor(2)", mask = "j < 16", scale = 1.0 },
]
"""
    op = compile_op(loads(text)["apart"])
    q, k, v = (torch.randn(1, 300, 1, 16) for _ in range(3))
    clean = op(q, k, v)
    v[:, 128:160] = float("nan")
    dirty = op(q, k, v)
    torch.testing.assert_close(dirty[:, 256:], clean[:, 256:], rtol=0, atol=0)
    assert dirty[:, 128:160].isnan().all()


def test_a_sum_of_terms_keeps_no_state_and_says_why(ops):
    op = ops["windowed"]
    q, k, v = (torch.randn(1, 9, 2, 16) for _ in range(3))
    with pytest.raises(InputError) as refused:
        op(q, k, v, mix=torch.zeros(2), return_state=True)
    assert str(refused.value) == (
        "error[A300]: 'windowed' has no state: it is a sum of terms\n"
        "  note: its terms see different keys: calls hand over no state, "
        "decode keeps one by a ring\n"
        "  hint: return_lse=True gives what combines with another call's keys"
    )
    with pytest.raises(PlanError, match="'windowed' has no recurrent form"):
        op(q, k, v, mix=torch.zeros(2), form="recurrent")


def test_explain_prints_every_term_and_its_derivative(ops):
    text = ops["windowed"].explain()
    assert "term 1     sigmoid(mix[h]) * (exp(s)) where (-i + j >= -19 and i - j >= 0)" in text
    assert "term 2     s**2/2 + s + 1 where (i - j >= 20)" in text
    assert "in term 2:\nw'(s)      = s + 1\n" in ops["windowed"].explain(backward=True)


def test_the_shipped_sum_is_a_window_with_a_polynomial_before_it():
    """Where the factor is 0 it is a sliding window of as many keys."""
    op = compile_op(shipped()["window_taylor"])
    q, k, v = (torch.randn(1, 140, 2, 64) for _ in range(3))
    alone = 'feature_map = "softmax"\nscale = "rsqrt(d)"\nmask = "causal & window(63)"\n'
    window = compile_op(loads(f"[window]\n{alone}")["window"])(q, k, v)
    out = op(q, k, v, mix=torch.tensor([-1e4, 0.0]))
    torch.testing.assert_close(out[:, :, 0], window[:, :, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, :64], window[:, :64], rtol=0, atol=1e-5)
    assert (out[:, 64:, 1] - window[:, 64:, 1]).abs().amax(-1).min() > 1e-3


def test_a_backward_of_terms_is_planned_with_room_for_a_third_tile_of_pairs(ops):
    """128 by 128 pairs spill by the compiler's figures for cuda:90, and 128 by 64 do not."""
    dq, _ = ops["windowed"].plan(dim=(64, 64), dtype="bf16", backward=True).passes
    assert (dq.kernel.name, dq.tile["BT"], dq.tile["BS"]) == ("dq", 128, 64)


@pytest.mark.parametrize(
    "weight",
    ["(1 + s)**2", "(s**2 - 3)**2", "(s - 2)**2*(s**2 + s + 1)", "(s - 1)**4 + 1e-12"],
)
def test_a_weight_that_touches_zero_or_almost_is_never_taken_below_it(weight):
    """Keys at the root alone: rounding makes some weights less than 0, which has no log."""
    text = f"""
[v]
terms = [
  {{ feature_map = "{weight}", scale = 1.0, mask = "causal" }},
  {{ feature_map = "softmax", scale = 1.0, mask = "i - j >= 999" }},
]
"""
    op = compile_op(loads(text)["v"])
    root = {"(1 + s)**2": -1.0, "(s**2 - 3)**2": 3**0.5, "(s - 1)**4 + 1e-12": 1.0}.get(weight, 2.0)
    q = torch.full((1, 200, 1, 16), root / 16) * (1 + 1e-5 * torch.randn(1, 200, 1, 1))
    k = torch.ones(1, 200, 1, 16) * (1 + 1e-5 * torch.randn(1, 200, 1, 1))
    v = torch.randn(1, 200, 1, 16)
    out, lse = op(q, k, v, return_lse=True)
    assert not out.isnan().any() and not lse.isnan().any()
    # an average of values is none of them
    assert out.abs().max() <= v.abs().max() + 1e-5
