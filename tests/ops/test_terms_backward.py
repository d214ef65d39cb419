"""The chunked backward of sums: walks for what a state carries, pairs for all that is left."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.autograd import gradcheck

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Workload
from attnc.codegen.planning import sum_gradient_planner
from attnc.codegen.planning.form_choice import choose_form, chunk_flops
from attnc.codegen.planning.planner import plans
from attnc.dsl import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape, draw_inputs
from attnc.ops.verification.gradients import gradient_rows
from tests.ops.test_gradients import function_of, hold_exactly, wide
from tests.ops.test_terms_chunked import TEXT
from tests.strategies import DTYPES

# every kind of declared tensor, a factor of either term, a value that differs by heads
EVERY = """
[every]
value = "v*v + w[c] + 0.1*g[b,t,h]*v"
sink = "z[h]"
params.w = { shape = ["c"], grad = true }
params.z = { shape = ["h"], grad = true }
params.slope = { shape = ["h"], grad = true }
params.m = { shape = [], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

[[every.terms]]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "i - j >= 10"
factor = "m*slope[h]"

[[every.terms]]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s - slope[h]*(i - j) + g[b,j,h] - g[b,i,h]"
mask = "(causal & window(12)) | (j < 4) & causal"
factor = "exp(m)"

[mapped]
params.mix = { shape = ["h"], grad = true }
terms = [
  { feature_map = "softmax", mask = "causal & window(33)", scale = "rsqrt(d)" },
  { feature_map = "elu(x) + 1", mask = "i - j >= 34", scale = 0.3, factor = "mix[h]" },
]
"""
PASSES = ("delta", "state", "scan", "dstate", "dscan", "walk_dq")


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(EVERY + TEXT).items()}


@pytest.fixture
def short(monkeypatch):
    """Chunks of 16 where the planner would take longer ones: several segments of a few tokens."""
    monkeypatch.setattr(sum_gradient_planner, "chunk_sizes", lambda *_: (16,))


@pytest.mark.rest(keep=2)
@pytest.mark.parametrize("name", ["every", "mapped", "twice", "ahead"])
def test_every_tensor_of_a_sum_has_its_gradient_by_chunks(name, ops, short):
    """Nine chunks are two segments: states before the second and after the first are scanned."""
    hold_exactly(ops[name], Shape(1, 135, 135, 2, 1, 16, 24), "chunked")


def test_a_group_of_heads_and_a_batch_are_told_apart(ops, short):
    hold_exactly(ops["mapped"], Shape(2, 55, 55, 4, 2, 20, 16), "chunked")


def test_gradcheck_passes_by_chunks(ops, short):
    op = ops["every"]
    call, leaves = function_of(op, wide(op, Shape(1, 35, 35, 2, 1, 16, 16)), "chunked")
    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(
    ("name", "dtype"), [("mapped", "bf16"), ("twice", "fp16"), ("mapped", "fp32")]
)
def test_gradients_by_chunks_err_as_eager_torch_does(name, dtype, ops):
    shape, generator = Shape(1, 90, 90, 2, 1, 16, 24, strided=True), torch.Generator()
    generator.manual_seed(5)
    inputs = draw_inputs(ops[name].variant, shape, DTYPES[dtype], generator, torch.device("cpu"))
    rows = [*gradient_rows(ops[name], inputs, shape, dtype, DTYPES[dtype], ("chunked",), generator)]
    assert {"d q, chunked form", "d k, chunked form"} <= {row.what for row in rows}
    for row in rows:
        assert row.error <= row.bound, str(row)


def test_a_factor_of_zero_leaves_the_state_a_gradient(ops, short):
    """Nothing is divided by the factor: what it would multiply is summed without it."""
    op = ops["mapped"]
    q, k, v = (torch.randn(1, 60, 1, 16, dtype=torch.float64) for _ in range(3))
    slopes = []
    for form in ("online", "chunked"):
        mix = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        out = op(q, k, v, mix=mix, form=form)
        slopes += torch.autograd.grad(out[:, 40:].square().sum(), mix)
    assert slopes[0].abs() > 1e-3
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=0)


def test_gradients_stay_finite_for_scores_of_any_size_in_either_form(ops, short):
    """Rows whose window weighs next to nothing, or all; features of 0 that have a slope."""
    for size, form in product((-400.0, 400.0), ("online", "chunked")):
        q, k, v = (torch.randn(1, 90, 1, 16) for _ in range(3))
        leaves = [x.requires_grad_() for x in (q, (k * 0.1 + size / 16).detach(), v)]
        out = ops["mapped"](leaves[0] * 0.1 + 1, *leaves[1:], mix=torch.ones(1), form=form)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        assert all(grad.isfinite().all() for grad in grads)
        assert grads[2].abs().max() > 0


def test_packed_gradients_by_chunks_are_those_of_calls_of_their_own(ops, short):
    op, starts = ops["mapped"], torch.tensor([0, 131, 131, 140, 190]).int()
    q, k, v, do = (torch.randn(1, 190, n, 16) for n in (2, 1, 1, 2))
    mix = torch.randn(2).abs()

    def gradients(part: slice, **packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [x[:, part].detach().requires_grad_() for x in (q, k, v)]
        out = op(*leaves, mix=mix, form="chunked", **packed)
        return torch.autograd.grad(out, leaves, do[:, part])

    whole = gradients(slice(None), cu_seqlens_q=starts, cu_seqlens_k=starts)
    parts = [gradients(slice(a, b)) for a, b in ((0, 131), (131, 140), (140, 190))]
    for found, *alone in zip(whole, *parts, strict=True):
        assert torch.equal(found, torch.cat(alone, 1))


def backward_of(op: Op, tokens: int, dims: tuple[int, int] = (16, 64), **facts: object):
    work = Workload(2, tokens, tokens, 4, 2)
    request = op.request(dims, "bf16", None, False, workload=work)
    return replace(request, phase="backward", **facts)


def planned(op: Op, tokens: int, **facts: object) -> Plan:
    return plans(backward_of(op, tokens, **facts))[0]


def test_a_backward_goes_by_chunks_where_that_multiplies_half_as_much(ops):
    far = planned(ops["mapped"], 16384)
    assert far.form == "chunked"
    assert far.form_reason == (
        "all pairs take 541.2 GFLOP, a state and the other pairs 11.8: a state carries term 2, of "
        "keys 34 tokens back or more; the other terms and its border go by pairs"
    )
    names = tuple(step.kernel.name for step in far.passes)
    assert names[: len(PASSES)] == PASSES and names[-2:] == ("dq", "dkv")
    near = planned(ops["mapped"], 256)
    assert [step.kernel.name for step in near.passes] == ["dq", "dkv"]
    assert near.form_reason.endswith("and no card has timed the latter")


def test_a_state_that_no_walk_holds_leaves_gradients_to_pairs_and_says_so(ops):
    """The forward asked for by chunks goes on from the same lse."""
    small = replace(DEVICES["h100"], registers=64)
    found = planned(ops["twice"], 4096, form="chunked", device=small)
    assert [step.kernel.name for step in found.passes] == ["dq", "dkv"]
    assert found.form == "online"
    assert found.form_reason == (
        "no tile of the chunked backward fits: needs about 153 registers a thread, at most 64 are "
        "there"
    )


@pytest.mark.parametrize(("name", "dims"), [("mapped", (64, 64)), ("twice", (16, 64))])
def test_products_that_choose_a_backward_are_those_that_its_passes_make(name, dims, ops):
    request = backward_of(ops[name], 4096, dims, form="chunked")
    wanted = ["walk_dq", "walk_dkv", "dq", "dkv"]
    chunks = [plan.passes[5:] for plan in plans(request) if plan.passes[-1].tile["BC"] == 64]
    found = next(last for last in chunks if [step.kernel.name for step in last] == wanted)
    made = sum(step.cost.flops for step in found)
    assert made == pytest.approx(chunk_flops(request, ops[name]._algebra), rel=0.02)


def test_a_backward_takes_the_form_of_its_own_shape(ops):
    """A package's modules and lengths that differ go by pairs, whatever their number."""
    long = backward_of(ops["mapped"], 16384)
    assert choose_form(replace(long, launcher="packaged"), ops["mapped"]._algebra)[0] == "online"
    shorter = replace(long, workload=replace(long.workload, tq=9))
    assert choose_form(shorter, ops["mapped"]._algebra)[0] == "online"


def test_a_walk_that_makes_monomials_takes_four_warps_and_short_chunks(ops):
    """By the compiler's figures for cuda:90, eight warps of 64 rows spill 2,064 B, four 1,900."""
    example = compile_op(shipped()["window_taylor"])
    walks = [
        [step for step in op.plan(dim=dims, form="chunked", backward=True).passes
         if step.kernel.name.startswith("walk")]
        for op, dims in ((example, (16, 64)), (ops["mapped"], (64, 64)))
    ]  # fmt: skip
    assert [{step.tile["BC"] for step in found} for found in walks] == [{32}, {64}]
    assert {step.num_warps for found in walks for step in found} == {4}
