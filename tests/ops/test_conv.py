"""Convolutions: the declared sum, its gradients, and what is refused."""

from __future__ import annotations

import secrets
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from attnc.cli.fit import fit_plans
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.errors import InputError, PlanError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import compile as compile_op
from attnc.ops.verification import convolution as verify_convolution
from attnc.ops.verification.convolution import FilterShape, draw_filter
from attnc.ops.verification.verify import verify
from tests.ops.convolutions import CONVOLUTIONS, dense

# one token, fewer and more taps than tokens, no multiple of any tile
SIZES = [(2, 1, 3, 5), (3, 63, 2, 7), (1, 200, 2, 201), (2, 100, 3, 33)]


@pytest.fixture(scope="module")
def ops() -> dict[str, ConvolutionOp]:
    return {name: compile_op(variant) for name, variant in CONVOLUTIONS.items()}


def drawn(name: str, size: tuple[int, int, int, int], dtype=torch.float32, *, strided=False):
    """Random v and declared tensors of a convolution, anew each time."""
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape = FilterShape.of(*size, strided=strided)
    device = torch.device("cpu")
    return draw_filter(CONVOLUTIONS[name], shape, dtype, generator, device)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_matrix_that_it_declares(name, size, ops):
    v, tensors = drawn(name, size)
    expected = dense(name, v, tensors)
    torch.testing.assert_close(ops[name].reference(v, **tensors), expected, rtol=0, atol=1e-12)
    for form in ops[name].forms():
        torch.full(v.shape, float("nan"))
        out = ops[name](v, form=form, **tensors)
        # fp32 rounds each of some hundred products
        error = (out - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error < 1e-5, (form, float(error))
        assert expected.norm() > 0 or size[1] < 3


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradcheck_passes_for_a_convolution(name, ops):
    v, tensors = drawn(name, (2, 37, 2, 9), torch.float64)
    for x in (v, *tensors.values()):
        x.requires_grad_()
    declared = {d.name: d for d in (*CONVOLUTIONS[name].params, *CONVOLUTIONS[name].inputs)}
    tensors = {key: x if declared[key].grad else x.detach() for key, x in tensors.items()}

    def run(v, *values):
        return ops[name](v, form="toeplitz", **dict(zip(tensors, values, strict=True)))

    # fast mode compares one random direction of each side, exact but for fp64
    assert torch.autograd.gradcheck(run, (v, *tensors.values()), fast_mode=True)


@pytest.mark.rest(keep=7)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["gated", "both_sides"])
def test_verify_holds_a_convolution_in_every_dtype(name, dtype):
    shapes = [FilterShape.of(1, 130, 2, 131), FilterShape.of(3, 70, 1, 5, strided=True)]
    report = verify(CONVOLUTIONS[name], shapes=shapes, dtypes=[dtype])
    assert report.passed, report.failures
    assert {row.dtype for row in report.rows} == {dtype}
    assert any(row.what.startswith("d w, ") for row in report.rows)


def test_a_filter_that_is_one_tap_short_fails_verification(monkeypatch):
    def without_first_tap(variant, v, tensors, **options):
        taps = tensors["w"].clone()
        taps[:, 0] = 0
        return convolve(variant, v, {**tensors, "w": taps}, **options)

    convolve = verify_convolution.convolve
    monkeypatch.setattr(verify_convolution, "convolve", without_first_tap)
    shapes = [FilterShape.of(1, 70, 3, 9)]
    report = verify(CONVOLUTIONS["gated"], shapes=shapes, dtypes=["bf16"], gradients=False)
    assert not report.passed


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_linter_and_the_formatter_leave_the_text_of_a_convolution_alone(name, ops, tmp_path):
    for backward in (False, True):
        for form in ops[name].forms():
            text = ops[name].source(backward=backward, form=form)
            (tmp_path / f"{form}_{backward}.py").write_text(text, encoding="utf-8")
    lint = "check --isolated --no-cache --line-length 100 --select E,W,F,I,PLR0133,SIM,RET"
    form = "format --isolated --no-cache --line-length 100 --check --diff"
    for command in (f"{lint} --ignore E501", form):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command.split(), str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_tokens_stay_adjacent_and_either_layout_gives_the_same(ops):
    v, tensors = drawn("gated", (2, 75, 3, 20))
    out = ops["gated"](v, **tensors)
    assert out.shape == v.shape
    assert out.stride(1) == 1
    other = {key: x.contiguous() for key, x in tensors.items()}
    assert torch.equal(ops["gated"](v.contiguous(), **other), out)


def test_the_compiler_of_torch_sees_a_convolution_and_its_backward_whole(ops):
    v, tensors = drawn("gated", (2, 50, 2, 11))

    def loss(v, w):
        return ops["gated"](v, **{**tensors, "w": w}).square().sum()

    found = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = v.clone().requires_grad_(), tensors["w"].clone().requires_grad_()
        run(*leaves).backward()
        found.append([x.grad for x in leaves])
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.rest(keep=2)
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_kernels_of_a_convolution_compile_for_an_h100(phase):
    op = compile_op(CONVOLUTIONS["gated"], device="h100")
    work = Workload(8, 1024, 1024, 768, 768, 1024)
    ranked = [
        plans(replace(op.request(None, "bf16", form, False, workload=work), phase=phase))
        for form in op.forms()
    ]
    for fitted in fit_plans(ranked, jobs=1):
        assert not fitted.refused
        assert len(fitted.compiled) == len(fitted.plan.passes)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda op, v, w: op(v, v, v, w=w), "takes v alone, not 3 tensors"),
        (lambda op, v, w: op(v, w=w, q=v), "takes v alone, not q"),
        (lambda op, v, w: op(v[0], w=w), "v has 2 dimensions, not 3: shape [40, 3]"),
        (lambda op, v, w: op(v, w=w[:, 1:]), "'w' has 8 taps, and under mask = \"full\""),
        (lambda op, v, w: op(v, w=w[:2]), "'w' has shape [2, 9], expected [3, 9]"),
        (lambda op, v, w: op(v), "'both_sides' needs param 'w'"),
        (lambda op, v, w: op(v[:, :0], w=w), "empty input: v is [2, 0, 3]"),
        (lambda op, v, w: op(v, w=w, precision="fp8"), "precision 'fp8' is neither"),
    ],
)
def test_a_call_that_does_not_fit_says_why(call, text, ops):
    with pytest.raises(InputError) as caught:
        call(ops["both_sides"], torch.randn(2, 40, 3), torch.randn(3, 9))
    assert text in str(caught.value)


def test_a_form_that_a_convolution_has_not_is_refused_with_those_that_it_has(ops):
    with pytest.raises(PlanError, match="has no online form"):
        ops["gated"].plan(form="online")
    with pytest.raises(PlanError, match="keeps no state"):
        ops["gated"].plan(stateful=True)
