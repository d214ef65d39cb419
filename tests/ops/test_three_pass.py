"""Convolutions by three passes: every choice of factors, gradients, what is planned and refused."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.cli.fit import fit_plans
from attnc.codegen.convolution.fft_work import error_of
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.errors import PlanError, WorkerError
from attnc.ops.built import Built, launch, store_plan
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.convolution import convolution_gradients
from attnc.ops.tap_transforms import transformed
from attnc.ops.verification.convolution import FilterShape, draw_filter, op_gradients
from tests.ops.convolutions import CONVOLUTIONS, dense

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@pytest.fixture(scope="module")
def ops() -> dict[str, ConvolutionOp]:
    return {name: compile_op(variant) for name, variant in CONVOLUTIONS.items()}


def drawn(name: str, size: tuple[int, int, int, int], dtype=torch.float32):
    """Random v and declared tensors, anew each time."""
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    return draw_filter(
        CONVOLUTIONS[name], FilterShape.of(*size), dtype, generator, torch.device("cpu")
    )


def ranked(op: ConvolutionOp, tokens: int, dtype: str, phase="forward"):
    """Every plan by three passes for sequences of so many tokens."""
    work = Workload(3, tokens, tokens, 2, 2, tokens)
    request = op.request(None, dtype, "three_pass", False, workload=work)
    return plans(replace(request, phase=phase))


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp(min=1e-30))


# one token, one sequence, an odd batch; fewer and more taps than tokens
@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(
    ("name", "size"),
    [("gated", (2, 1, 3, 5)), ("past", (1, 257, 2, 33))]
    + [(name, (3, 300, 1, 701)) for name in CONVOLUTIONS],
    ids=str,
)
def test_three_passes_give_the_declared_matrix(name, size, ops):
    v, tensors = drawn(name, size)
    expected = dense(name, v, tensors)
    assert expected.norm() > 0 or size[1] < 3
    # fp32 rounds each operand of twelve products
    assert relative(ops[name](v, form="three_pass", **tensors), expected) < 2e-6


def test_every_choice_of_factors_gives_the_same_and_a_block_that_is_full_does_not_wrap(ops):
    name, tokens = "both_sides", 4096
    v, tensors = drawn(name, (1, tokens, 2, 2 * tokens - 1))
    expected = ops[name].reference(v, **tensors)
    taps = transformed(CONVOLUTIONS[name], tensors["w"], training=False)
    found = ranked(ops[name], tokens, "fp32")
    sizes = {plan.passes[1].tile["N1"] * plan.passes[1].tile["N2"] for plan in found}
    # the two smallest are full, in the others outer rows stay empty
    assert sizes == {256, 512, 1024, 2048}
    for plan in found:
        (out,) = launch(Built([plan], 0, store_plan(plan)), v, [v, taps])
        assert relative(out, expected) < 2e-6, str(plan.passes[1])


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", ["gated", "both_sides", "around"])
def test_gradients_by_three_passes_are_those_of_the_formula(name, ops):
    v, tensors = drawn(name, (3, 300, 1, 301))
    incoming = torch.randn(v.shape)
    expected = convolution_gradients(CONVOLUTIONS[name], v, tensors, incoming)
    found = op_gradients(ops[name], v, tensors, incoming, "three_pass")
    assert set(found) == set(expected)
    for label, gradient in found.items():
        # sums over all tokens cancel: the skip's loses most
        assert relative(gradient, expected[label]) < 1e-5, label


def test_gradcheck_passes_by_three_passes(ops):
    name = "gated"
    v, tensors = drawn(name, (1, 70, 1, 45), torch.float64)
    declared = {d.name: d for d in (*CONVOLUTIONS[name].params, *CONVOLUTIONS[name].inputs)}
    for label, x in {"v": v, **tensors}.items():
        x.requires_grad_(label == "v" or declared[label].grad)

    def run(v, *values):
        return ops[name](v, form="three_pass", **dict(zip(tensors, values, strict=True)))

    assert torch.autograd.gradcheck(run, (v, *tensors.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", NAMES)
def test_the_error_that_three_passes_state_is_the_one_seen(dtype, ops):
    v, tensors = drawn("both_sides", (2, 450, 1, 451), dtype)
    out = ops["both_sides"](v, form="three_pass", **tensors)
    seen = relative(out, dense("both_sides", v, tensors))
    stated = error_of("three_pass", NAMES[dtype])
    assert 0.3 * stated < seen < 1.5 * stated, (seen, stated)


def test_work_and_bytes_choose_three_passes_where_a_block_ends(ops):
    chosen = {}
    for tokens in (1024, 4096, 32768, 65536, 131072):
        work = Workload(2, tokens, tokens, 768, 768, tokens)
        plan = ops["gated"].plan(workload=work)
        chosen[tokens] = plan.form
        flops = sum(step.cost.flops for step in plan.passes)
        # a token's share grows as the factors do, not as the tokens
        assert flops / (2 * tokens * 768) < 6000
    assert chosen == {
        1024: "fft", 4096: "fft", 32768: "three_pass", 65536: "three_pass", 131072: "three_pass",
    }  # fmt: skip


def test_a_sequence_that_no_outer_stage_takes_is_refused_with_the_reason(ops):
    with pytest.raises(PlanError) as caught:
        ranked(ops["gated"], 1 << 20, "bf16")
    assert "an outer stage of more than 128 points" in str(caught.value)


def test_a_module_refuses_more_tokens_than_it_was_planned_for(ops):
    plan = ranked(ops["both_sides"], 1024, "fp32")[-1]
    tokens = plan.passes[0].tile["NO"] * plan.passes[0].tile["M"] // 2 + 1
    v, w = torch.randn(1, tokens, 1), torch.randn(1, 5)
    with pytest.raises(WorkerError, match=f"tokens at most, not {tokens}"):
        launch(Built([plan], 0, store_plan(plan)), v, [v, w])


@pytest.mark.rest
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_kernels_of_three_passes_compile_for_an_h100(phase):
    op = compile_op(CONVOLUTIONS["gated"], device="h100")
    work = Workload(4, 65536, 65536, 768, 768, 65536)
    request = op.request(None, "bf16", "three_pass", False, workload=work)
    (fitted,) = fit_plans([plans(replace(request, phase=phase))], jobs=1)
    assert not fitted.refused
    assert len(fitted.compiled) == (5 if phase == "forward" else 9)
