"""Convolutions on a GPU: both forms held to fp64 in every dtype, every choice of factors too."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.codegen.plan import Workload
from attnc.codegen.planning.choice import choice_of
from attnc.codegen.planning.planner import plans
from attnc.dsl.butterfly import FACTORS, block_of
from attnc.ops.built import Built, launch, store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.placement import planner_device
from attnc.ops.reference.convolution import convolution_gradients
from attnc.ops.shipped import convolutions
from attnc.ops.tuning import tuned as tuned_module
from attnc.ops.tuning.tune import tune
from attnc.ops.verification.convolution import FilterShape, draw_filter, op_gradients
from attnc.ops.verification.verify import verify
from tests.ops.convolutions import CONVOLUTIONS, LEARNED

pytestmark = pytest.mark.gpu
# of the output's norm, where a wrong factor gives tenths
BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["gated", "both_sides"])
def test_both_forms_and_their_gradients_agree_with_fp64(name, dtype):
    sizes = [(4, 63, 16, 63), (2, 1000, 24, 1001), (1, 5000, 8, 3001), (3, 4096, 8, 4095)]
    report = verify(
        CONVOLUTIONS[name], device="cuda", dtypes=[dtype],
        shapes=[FilterShape.of(*size, strided=size[1] == 1000) for size in sizes],
    )  # fmt: skip
    assert report.passed, report.failures


@pytest.mark.parametrize("name", convolutions())
def test_a_shipped_convolution_is_its_direct_sum(name):
    shapes = [FilterShape.of(*size) for size in ((3, 1000, 16, 1000), (2, 63, 16, 4))]
    report = verify(convolutions()[name], device="cuda", dtypes=["bf16", "fp32"], shapes=shapes)
    assert report.passed, report.failures


@pytest.mark.parametrize("tokens", [1024, 1000])
def test_a_tuned_convolution_runs_what_won(tokens, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    tuned_module.forget()
    op, shape = compile_op(convolutions()["long_conv"]), FilterShape.of(4, tokens, 64, tokens)
    found = tune(op, [shape], budget_s=20)
    assert [result.job.phase for result in found] == ["forward", "backward", "backward"]
    for result in found:
        assert result.answer is not None, [trial.problem for trial in result.trials]
        # of what was measured nothing was wrong
        measured = [t for t in result.trials if not t.problem.startswith("not measured")]
        assert [t.problem for t in measured] == [""] * len(measured)
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    cuda = torch.device("cuda")
    v, tensors = draw_filter(op.variant, shape, torch.bfloat16, generator, cuda)
    out, expected = op(v, **tensors), op.reference(v, **tensors)
    (built,) = op._built.values()
    assert choice_of(built.plan) == found[0].answer.choice
    assert (out.double() - expected).norm() / expected.norm() < BOUNDS[v.dtype]
    tuned_module.forget()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_choice_of_factors_is_right_with_one_block_and_with_pieces(dtype):
    op = compile_op(CONVOLUTIONS["gated"])
    for size in ((3, 250, 4, 250), (3, 9001, 2, 9001)):
        generator = torch.Generator().manual_seed(secrets.randbits(32))
        cuda = torch.device("cuda")
        v, tensors = draw_filter(
            CONVOLUTIONS["gated"], FilterShape.of(*size), dtype, generator, cuda
        )
        expected = op.reference(v, **tensors)
        batch, tokens, channels, taps = size
        request = op.request(
            None, {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype],
            "fft", False, device=planner_device(cuda),
            workload=Workload(batch, tokens, tokens, channels, channels, taps),
        )  # fmt: skip
        arguments = [v, *(tensors[label] for label in op.tensor_names)]
        for plan in plans(replace(request, phase="forward")):
            (out,) = launch(Built([plan], 0, store_plan(plan)), v, arguments)
            error = (out.double() - expected).norm() / expected.norm()
            assert error < BOUNDS[dtype], (str(plan.passes[0]), float(error))


def test_the_same_call_twice_gives_the_same_gradients_bit_for_bit():
    op = compile_op(CONVOLUTIONS["gated"])
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape = FilterShape.of(8, 3000, 16, 3000)
    cuda = torch.device("cuda")
    v, tensors = draw_filter(CONVOLUTIONS["gated"], shape, torch.bfloat16, generator, cuda)
    incoming = torch.randn_like(v)
    found = []
    for _ in range(2):
        leaves = {k: x.detach().clone().requires_grad_() for k, x in {"v": v, **tensors}.items()}
        out = op(form="fft", **leaves)
        found.append(torch.autograd.grad(out, list(leaves.values()), incoming))
    for first, second in zip(*found, strict=True):
        assert first.abs().sum() > 0
        assert torch.equal(first, second)


def test_a_call_replays_in_a_cuda_graph_with_other_numbers():
    op = compile_op(CONVOLUTIONS["both_sides"])
    v, w = torch.randn(2, 3000, 8, device="cuda"), torch.randn(8, 301, device="cuda") / 17
    op(v, w=w, form="fft")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(v, w=w, form="fft")
    v.copy_(torch.randn_like(v))
    w.copy_(torch.randn_like(w) / 17)
    graph.replay()
    expected = op.reference(v, w=w)
    error = (out.double() - expected).norm() / expected.norm()
    assert error < 5e-6


def test_steps_in_a_cuda_graph_are_the_whole_convolution():
    op = compile_op(CONVOLUTIONS["gated"])
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape, cuda = FilterShape.of(4, 80, 24, 33), torch.device("cuda")
    v, tensors = draw_filter(CONVOLUTIONS["gated"], shape, torch.float32, generator, cuda)
    expected = op.reference(v, **tensors)
    state = op.init_state(4, 24, 33, dtype=v.dtype)

    def token(place):
        return {k: x[:, place : place + 1] if x.dim() == 3 else x for k, x in tensors.items()}

    fed = {k: x.clone() for k, x in {"v": v[:, :1], **token(0)}.items()}
    op.step(fed["v"], state, **{k: x for k, x in fed.items() if k != "v"})
    state.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, _ = op.step(fed["v"], state, **{k: x for k, x in fed.items() if k != "v"})
    state.reset()
    rows = []
    for place in range(80):
        for k, x in {"v": v[:, place : place + 1], **token(place)}.items():
            fed[k].copy_(x)
        graph.replay()
        rows.append(o.clone())
    error = (torch.cat(rows, 1).double() - expected).norm() / expected.norm()
    assert error < 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_learned_factors_and_their_gradients_agree_with_fp64(factors, dtype):
    op = compile_op(LEARNED)
    tokens = block_of(*factors) - 5
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape, cuda = FilterShape.of(5, tokens, 24, tokens), torch.device("cuda")
    v, tensors = draw_filter(LEARNED, shape, dtype, generator, cuda)
    incoming = torch.randn_like(v)
    out = op(v, **tensors)
    expected = op.reference(v, **tensors)
    assert (out.double() - expected).norm() / expected.norm() < BOUNDS[dtype]
    found = op_gradients(op, v, tensors, incoming, None)
    again = op_gradients(op, v, tensors, incoming, None)
    wanted = convolution_gradients(LEARNED, v, tensors, incoming)
    for label, gradient in found.items():
        assert torch.equal(gradient, again[label]), label
        error = (gradient.double() - wanted[label]).norm() / wanted[label].norm()
        assert error < 1.5 * BOUNDS[dtype], (label, float(error))


def test_verify_holds_learned_factors_in_fp32():
    report = verify(LEARNED, device="cuda", dtypes=["fp32"])
    assert report.passed, report.failures


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("size", [(3, 6000, 3, 6001), (1, 20000, 2, 9001)], ids=str)
def test_every_choice_of_three_passes_is_right(size, dtype):
    op = compile_op(CONVOLUTIONS["gated"])
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    cuda = torch.device("cuda")
    v, tensors = draw_filter(CONVOLUTIONS["gated"], FilterShape.of(*size), dtype, generator, cuda)
    expected = by_fft64(v, tensors)
    batch, tokens, channels, taps = size
    request = op.request(
        None, {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype],
        "three_pass", False, device=planner_device(cuda),
        workload=Workload(batch, tokens, tokens, channels, channels, taps),
    )  # fmt: skip
    arguments = [v, *(tensors[label] for label in op.tensor_names)]
    found = plans(replace(request, phase="forward"))
    assert len(found) > 1
    for plan in found:
        (out,) = launch(Built([plan], 0, store_plan(plan)), v, arguments)
        error = (out.double() - expected).norm() / expected.norm()
        assert error < BOUNDS[dtype], (str(plan.passes[1]), float(error))


def by_fft64(v, tensors):
    """The gated convolution in fp64 by torch.fft, which long sequences are compared with."""
    wide = {key: x.double() for key, x in tensors.items()}
    points = 2 * v.shape[1] + wide["w"].shape[1]
    u = v.double() * wide["a"]
    spectrum = torch.fft.rfft(u, n=points, dim=1) * torch.fft.rfft(wide["w"], n=points).T
    z = torch.fft.irfft(spectrum, n=points, dim=1)[:, : v.shape[1]]
    return wide["g"] * (z + wide["D"] * u)


@pytest.mark.parametrize("tokens", [16384, 65536, 131072])
def test_gradients_of_long_filters_agree_with_fp64(tokens):
    op = compile_op(CONVOLUTIONS["gated"])
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    cuda, shape = torch.device("cuda"), FilterShape.of(3, tokens - 7, 4, tokens)
    v, tensors = draw_filter(CONVOLUTIONS["gated"], shape, torch.bfloat16, generator, cuda)
    incoming = torch.randn_like(v)
    found = op_gradients(op, v, tensors, incoming, "three_pass")
    again = op_gradients(op, v, tensors, incoming, "three_pass")
    leaves = {"v": v.double().requires_grad_()}
    leaves |= {key: x.double().requires_grad_() for key, x in tensors.items()}
    out = by_fft64(leaves["v"], {key: x for key, x in leaves.items() if key != "v"})
    wanted = torch.autograd.grad(out, list(leaves.values()), incoming.double())
    for (label, gradient), expected in zip(found.items(), wanted, strict=True):
        assert torch.equal(gradient, again[label]), label
        error = (gradient.double() - expected).norm() / expected.norm()
        # the skip's gradient is a sum over all tokens that cancels
        assert error < (0.05 if label == "D" else 1.5 * BOUNDS[v.dtype]), (label, float(error))


def test_three_passes_replay_in_a_cuda_graph_with_other_numbers():
    op = compile_op(CONVOLUTIONS["both_sides"])
    v, w = torch.randn(2, 9000, 8, device="cuda"), torch.randn(8, 9001, device="cuda") / 95
    op(v, w=w, form="three_pass")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(v, w=w, form="three_pass")
    v.copy_(torch.randn_like(v))
    w.copy_(torch.randn_like(w) / 95)
    graph.replay()
    expected = op.reference(v, w=w)
    error = (out.double() - expected).norm() / expected.norm()
    assert error < 5e-6
