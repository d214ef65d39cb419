"""Convolutions by learned factors: explicit matrices, gradients of the factors, what is refused."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.cli.fit import fit_plans
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.dsl import Convolution, Param, c, causal, i, j, loads
from attnc.dsl.butterfly import FACTORS, block_of
from attnc.errors import DeclarationError, InputError, PlanError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.convolution import convolution_gradients
from attnc.ops.verification.convolution import FilterShape, draw_filter, op_gradients
from attnc.ops.verification.verify import verify
from tests.ops.convolutions import CONVOLUTIONS, LEARNED


@pytest.fixture(scope="module")
def op() -> ConvolutionOp:
    return compile_op(LEARNED)


def drawn(size: tuple[int, int, int, int], dtype=torch.float32, *, variant=LEARNED):
    """Random v and declared tensors, factors far from the DFT's, anew each time."""
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    return draw_filter(variant, FilterShape.of(*size), dtype, generator, torch.device("cpu"))


def by_matrices(v: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The declared result by one matrix [N, N / 2] of the transform and one of the DFT, in fp64."""
    wide = {key: x.double() for key, x in tensors.items()}
    outer, inner = torch.complex(*wide["F1"]), torch.complex(*wide["F2"])
    (n1, half), n2 = outer.shape, inner.shape[0]
    points, tokens, taps = n1 * n2, v.shape[1], wide["w"][:, : n1 * n2 // 2]
    turns = torch.outer(torch.arange(n1), torch.arange(n2)).double() / points
    twiddles = torch.exp(-2j * torch.pi * turns)
    # row k1 + N1 * k2, column n1 * N2 + n2
    learned = torch.einsum("kn,km,lm->lknm", outer, twiddles, inner).reshape(points, half * n2)
    places = torch.arange(points).double()
    dft = torch.exp(-2j * torch.pi * torch.outer(places, places) / points)
    u = (v.double() * wide["a"]).to(torch.complex128)
    z = torch.einsum("kt,btc->bkc", learned[:, :tokens], u)
    spectrum = torch.einsum("kd,cd->kc", dft[:, : taps.shape[1]], taps.to(torch.complex128))
    back = torch.einsum("kt,bkc->btc", dft.conj(), z * spectrum) / points**0.5
    return wide["g"] * (back.real[:, :tokens] + wide["D"] * u.real)


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp(min=1e-30))


# one token, a ragged block, a whole one; fewer taps than tokens, and more
@pytest.mark.parametrize("size", [(2, 1, 3, 5), (3, 200, 2, 33), (1, 512, 2, 700)], ids=str)
def test_a_learned_transform_is_the_matrices_that_it_declares(size, op):
    v, tensors = drawn(size)
    expected = by_matrices(v, tensors)
    assert expected.norm() > 0
    assert relative(op.reference(v, **tensors), expected) < 1e-12
    # fp32 rounds a handful of operands
    assert relative(op(v, **tensors), expected) < 2e-6


@pytest.mark.parametrize("tokens", [200, 900])
def test_untrained_factors_give_the_convolution(tokens, op):
    v, tensors = drawn((2, tokens, 2, tokens))
    tensors |= op.init_factors(tokens)
    plain = {key: x for key, x in tensors.items() if key not in {"F1", "F2"}}
    fixed = compile_op(CONVOLUTIONS["gated"])
    expected = fixed.reference(v, **plain)
    assert expected.norm() > 0
    assert relative(op(v, **tensors), expected) < 2e-6
    assert relative(op(v, **tensors), fixed(v, form="fft", **plain)) < 2e-6


def test_taps_on_both_sides_go_through_learned_factors_too():
    text = '[both]\nweight = "w[c, i-j]"\nouter = "F1[z, k1, n1]"\ninner = "F2[z, k2, n2]"\n'
    text += 'params.w = { shape = ["c", "T"], grad = true }\n'
    text += 'params.F1 = { shape = ["z", "k1", "n1"] }\nparams.F2 = { shape = ["z", "k2", "n2"] }\n'
    both = compile_op(loads(text)["both"])
    v, w = torch.randn(2, 250, 2), torch.randn(2, 701) / 16
    out = both(v, w=w, **both.init_factors(250))
    assert relative(out, compile_op(CONVOLUTIONS["both_sides"]).reference(v, w=w)) < 2e-6


@pytest.mark.parametrize("factors", FACTORS[:3], ids=str)
def test_gradients_of_learned_factors_are_those_of_the_formula(factors, op):
    tokens = block_of(*factors) - 3
    v, tensors = drawn((2, tokens, 2, tokens // 2))
    assert (tensors["F1"].shape[1], tensors["F2"].shape[1]) == factors
    incoming = torch.randn(v.shape)
    expected = convolution_gradients(LEARNED, v, tensors, incoming)
    found = op_gradients(op, v, tensors, incoming, None)
    assert set(found) == {"v", "w", "D", "F1", "F2", "a", "g"}
    for label, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert expected[label].norm() > 0
        assert relative(gradient, expected[label]) < 5e-6, label


def test_gradcheck_passes_for_learned_factors(op):
    v, tensors = drawn((2, 37, 2, 9), torch.float64)
    for x in (v, *tensors.values()):
        x.requires_grad_()

    def run(v, *values):
        return op(v, **dict(zip(tensors, values, strict=True)))

    # fast mode compares one random direction of each side, exact but for fp64
    assert torch.autograd.gradcheck(run, (v, *tensors.values()), fast_mode=True)


def test_only_the_gradients_that_are_asked_for_are_made(op):
    v, tensors = drawn((2, 50, 2, 9))
    tensors["F2"].requires_grad_()
    (gradient,) = torch.autograd.grad(op(v, **tensors).square().sum(), tensors["F2"])
    wide = {key: x.detach().double() for key, x in tensors.items()}
    wide["F2"].requires_grad_()
    loss = op.reference(v, **wide)
    assert loss.grad_fn is not None
    (expected,) = torch.autograd.grad(loss.square().sum(), wide["F2"])
    assert relative(gradient, expected) < 5e-6


@pytest.mark.rest
def test_a_backward_that_fits_no_sram_says_which_factors_would(op):
    v, tensors = drawn((1, 20, 1, 5))
    for name, points in (("F1", 128), ("F2", 64)):
        rows = points if name == "F2" else points // 2
        tensors[name] = torch.randn(2, points, rows).requires_grad_()
    out = op(v, **tensors)
    plain = {name: x.detach() for name, x in tensors.items()}
    assert relative(out.detach(), by_matrices(v, plain)) < 2e-6
    with pytest.raises(PlanError, match=r"no tile of the backward of .* fits 232,448 B") as caught:
        out.sum().backward()
    assert "or factors of fewer points: op.init_factors(tokens)" in caught.value.hints[1]


@pytest.mark.rest
def test_verify_holds_learned_factors_in_every_dtype():
    report = verify(LEARNED, shapes=[FilterShape.of(2, 130, 3, 131), FilterShape.of(3, 70, 2, 5)])
    assert report.passed, report.failures
    assert {row.dtype for row in report.rows} == {"fp16", "bf16", "fp32"}
    assert {"d F1, butterfly form", "d F2, butterfly form"} <= {row.what for row in report.rows}


def test_python_and_toml_declare_the_same_factors():
    w, first = Param("w", shape="c,T", grad=True), Param("F1", shape="z,k1,n1", grad=True)
    second = Param("F2", shape="z,k2,n2", grad=True)
    built = Convolution(
        "learned", weight=w[c, i - j], mask=causal, outer=first["z", "k1", "n1"],
        inner=second["z", "k2", "n2"],
    )  # fmt: skip
    text = '[learned]\nweight = "w[c, i-j]"\nmask = "causal"\n'
    plain = loads(text + 'params.w = { shape = ["c", "T"], grad = true }\n')["learned"]
    assert built.digest != plain.digest
    assert compile_op(built).forms() == ("butterfly",)
    assert "butterfly" not in compile_op(plain).forms()


@pytest.mark.rest
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_kernels_of_learned_factors_compile_for_an_h100(phase):
    op = compile_op(LEARNED, device="h100")
    request = op.request(None, "bf16", None, False, workload=Workload(8, 1024, 1024, 64, 64, 1024))
    (fitted,) = fit_plans([plans(replace(request, phase=phase))], jobs=1)
    assert not fitted.refused
    assert len(fitted.compiled) == (1 if phase == "forward" else 5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda op, v, t: op(v, form="fft", **t), PlanError, "'learned' has no fft form"),
        (lambda op, v, t: op(v, form="toeplitz", **t), PlanError, "no sum of taps at offsets"),
        (
            lambda op, v, t: op(v, **{**t, "F1": t["F1"][:, :16]}), InputError,
            "'F1' is a factor of 16 points; kernels take 32, 64, 128",
        ),
        (lambda op, v, t: op(v, **{**t, "F1": t["F1"][:1]}), InputError, "'F1' has shape [1, 32,"),
        (
            lambda op, v, t: op(torch.zeros(1, 600, 2), **{
                k: x[:1, :1].expand(1, 600, 2) if x.dim() == 3 and k in "ag" else x
                for k, x in t.items()
            }), InputError, "v has 600 tokens, and factors of 32 and 16 points take 256 at most",
        ),
        (lambda op, v, t: op.init_factors(5000), PlanError, "takes 5,000 tokens: the largest has"),
        (lambda op, v, t: op.init_state(1, 2, 9), PlanError, "mix all tokens of a block"),
    ],
)  # fmt: skip
def test_a_call_that_learned_factors_do_not_take_says_why(call, error, text, op):
    v, tensors = drawn((1, 60, 2, 9))
    with pytest.raises(error) as caught:
        call(op, v, tensors)
    assert text in str(caught.value)


def test_a_convolution_without_factors_has_none_to_begin_with():
    with pytest.raises(InputError, match="'gated' declares no factors"):
        compile_op(CONVOLUTIONS["gated"]).init_factors(64)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('outer = "F1[z, k1, n1]"\n', "'v' has an outer factor and no inner one"),
        ('outer = "2 * F1[z, k1, n1]"\ninner = "F2[z, k2, n2]"\n', "outer of 'v' is 2 * F1[z, k1"),
        ('outer = "F1[z, n1, k1]"\ninner = "F2[z, k2, n2]"\n', "does not fit the shape"),
    ],
)
def test_factors_that_are_no_transform_are_refused(lines, message):
    head = '[v]\nweight = "w[c, i-j]"\nparams.w = { shape = ["c", "T"] }\n'
    tail = 'params.F1 = { shape = ["z", "k1", "n1"] }\nparams.F2 = { shape = ["z", "k2", "n2"] }\n'
    with pytest.raises(DeclarationError) as caught:
        loads(head + lines + tail)
    assert message in str(caught.value)
