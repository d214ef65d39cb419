"""Convolutions by transforms: every choice of factors, pieces of long filters, errors as stated."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.codegen.convolution.fft_work import error_of
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.ops.built import Built, launch, store_plan
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.convolution import convolution_gradients
from attnc.ops.tap_transforms import transformed
from attnc.ops.verification.convolution import FilterShape, draw_filter
from tests.ops.convolutions import CONVOLUTIONS, dense

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# one block of 256 tokens and less; three blocks of it, the last one ragged, and an odd batch
SIZES = [(2, 1, 3, 5), (3, 700, 2, 701)]


@pytest.fixture(scope="module")
def ops() -> dict[str, ConvolutionOp]:
    return {name: compile_op(variant) for name, variant in CONVOLUTIONS.items()}


def drawn(name: str, size: tuple[int, int, int, int], dtype=torch.float32):
    """Random v and declared tensors, anew each time."""
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    return draw_filter(
        CONVOLUTIONS[name], FilterShape.of(*size), dtype, generator, torch.device("cpu")
    )


def ranked(op: ConvolutionOp, size: tuple[int, int, int, int], dtype: str, phase="forward"):
    """Every plan by transforms for a call of that size."""
    batch, tokens, channels, taps = size
    work = Workload(batch, tokens, tokens, channels, channels, taps)
    return plans(replace(op.request(None, dtype, "fft", False, workload=work), phase=phase))


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_choice_of_factors_gives_the_declared_matrix(name, size, ops):
    v, tensors = drawn(name, size)
    expected = dense(name, v, tensors)
    assert expected.norm() > 0 or size[1] < 3
    found = ranked(ops[name], size, "fp32")
    assert len({bool(plan.passes[0].kernel.loops) for plan in found}) == 1 + (size[1] > 512)
    # an op transforms its taps before any kernel sees them
    taps = transformed(CONVOLUTIONS[name], tensors["w"], training=False)
    for plan in found:
        given = tensors | {"w": taps}
        arguments = [v, *(given[label] for label in ops[name].tensor_names)]
        (out,) = launch(Built([plan], 0, store_plan(plan)), v, arguments)
        # fp32 rounds a handful of operands
        assert relative(out, expected) < 2e-6, str(plan.passes[0])


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", ["gated", "both_sides"])
def test_gradients_by_transforms_are_those_of_the_formula_for_every_choice(name, ops):
    size = (3, 700, 2, 701)
    v, tensors = drawn(name, size)
    incoming = torch.randn(v.shape)
    expected = convolution_gradients(CONVOLUTIONS[name], v, tensors, incoming)
    for plan in ranked(ops[name], size, "fp32", "backward"):
        arguments = [v, *(tensors[label] for label in ops[name].tensor_names), incoming]
        results = launch(Built([plan], 0, store_plan(plan)), v, arguments)
        assert plan.derivation is not None
        wanted = {partial.declared.name for partial in plan.derivation.partials}
        labels = ["v", *(label for label in ops[name].tensor_names if label in wanted)]
        assert len(labels) == len(results) == len(expected)
        for label, result in zip(labels, results, strict=True):
            # sums over all tokens cancel: the skip's loses most
            assert relative(result, expected[label]) < 1e-5, (label, str(plan.passes[0]))


@pytest.mark.parametrize(("name", "tokens"), [("gated", 37), ("past", 300), ("both_sides", 300)])
def test_gradcheck_passes_by_transforms(name, tokens, ops):
    v, tensors = drawn(name, (1, tokens, 2, 9), torch.float64)
    declared = {d.name: d for d in (*CONVOLUTIONS[name].params, *CONVOLUTIONS[name].inputs)}
    for label, x in {"v": v, **tensors}.items():
        x.requires_grad_(label == "v" or declared[label].grad)

    def run(v, *values):
        return ops[name](v, form="fft", **dict(zip(tensors, values, strict=True)))

    assert torch.autograd.gradcheck(run, (v, *tensors.values()), fast_mode=True)


@pytest.mark.parametrize("form", ["fft", "toeplitz"])
@pytest.mark.parametrize("dtype", NAMES)
def test_the_error_that_a_plan_states_is_the_one_seen(dtype, form, ops):
    v, tensors = drawn("both_sides", (2, 450, 2, 451), dtype)
    out = ops["both_sides"](v, form=form, **tensors)
    seen, stated = (
        relative(out, dense("both_sides", v, tensors)),
        error_of(form, NAMES[dtype]),
    )
    assert 0.3 * stated < seen < 1.5 * stated, (seen, stated)
    assert f"{NAMES[dtype]} {stated:.1e}" in ops["both_sides"].plan(form=form).form_reason


def test_work_and_bytes_choose_the_form_and_the_plan_says_so(ops):
    chosen = {}
    for tokens, taps in ((4096, 16), (4096, 4096), (131072, 131072)):
        work = Workload(8, tokens, tokens, 64, 64, taps)
        plan = ops["gated"].plan(workload=work)
        chosen[taps] = plan.form
        assert "toeplitz" in plan.form_reason
        assert "GFLOP" in plan.form_reason
    assert chosen == {16: "toeplitz", 4096: "fft", 131072: "three_pass"}


def test_a_filter_whose_taps_all_lie_beyond_the_sequence_gives_nothing():
    from attnc.dsl import loads

    text = '[late]\nweight = "w[c, i-j]"\nmask = "i - j >= 900"\n'
    late = compile_op(loads(text + 'params.w = { shape = ["c", "T"], grad = true }\n')["late"])
    w = torch.randn(2, 5, requires_grad=True)
    for tokens, full in ((40, False), (700, False), (1000, True)):
        v = torch.randn(1, tokens, 2)
        out = late(v, w=w, form="fft")
        assert bool((out != 0).any()) == full
        torch.testing.assert_close(out, late.reference(v, w=w).float(), atol=1e-5, rtol=0)
        (gradient,) = torch.autograd.grad(out.sum(), w)
        assert bool((gradient.abs() > 1e-5).any()) == full
