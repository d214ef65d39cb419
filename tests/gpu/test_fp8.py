"""8-bit tensors on a card: by the criterion, by eager attention, in every tile, called again."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc.autotune.module_cache import load_module
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.launch import used_tensors
from attnc.dsl import loads
from attnc.ops.built import store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.verification.criterion import check
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.verify import verify

pytestmark = pytest.mark.gpu
E4M3 = torch.float8_e4m3fn
SOFTMAX = [
    name
    for name, variant in attnc.shipped().items()
    if variant.family == "softmax" and variant.value is None
]
(FLASH,) = loads('[flash]\nfeature_map = "softmax"\nscale = "rsqrt(d)"\nmask = "causal"').values()


@pytest.fixture(autouse=True)
def _able() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this card multiplies no e4m3 tensors")


def drawn(shape: Shape, seed: int = 0) -> Inputs:
    variant = compile_op(FLASH).over_scales(torch.empty(0, dtype=E4M3)).variant
    generator = torch.Generator().manual_seed(seed)
    return draw_inputs(variant, shape, E4M3, generator, torch.device("cuda"))


def poison() -> None:
    """Fill what the allocator hands out next with NaN: an element that nobody writes shows."""
    blocks = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(8, 24)]
    del blocks


def hold(out: torch.Tensor, inputs: Inputs) -> None:
    variant = compile_op(FLASH).over_scales(inputs.q).variant
    ref = attend(variant, *inputs.qkv, inputs.tensors).out
    rounded = attend(
        variant, *inputs.qkv, inputs.tensors, dtype=torch.float32, rounding=torch.bfloat16
    ).out
    verdict = check(out, ref, rounded)
    assert verdict.passed and verdict.zeros_fail, str(verdict)


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_shipped_softmax_variant_takes_bytes_of_any_lengths(name):
    report = verify(attnc.shipped()[name], device="cuda", dtypes=("e4m3",))
    assert report.passed, str(report)


@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
def test_every_tile_that_may_be_tuned_to_gives_the_formula(dim):
    op = compile_op(FLASH)
    inputs = drawn(Shape(2, 300, 700, 4, 2, dim, dim), seed=dim)
    found = plans(op.request((dim, dim), "e4m3", None, False))
    for plan in found[:: max(1, len(found) // 6)]:
        poison()
        module = load_module(store_plan(plan))
        declared = [inputs.tensors[name] for name in used_tensors(plan)]
        out, _ = module.forward(*inputs.qkv, *declared)
        hold(out, inputs)


def test_bytes_agree_with_bf16_kernels_of_what_they_stand_for():
    op = compile_op(FLASH, backend="triton")
    inputs = drawn(Shape(2, 1000, 1000, 4, 2, 128, 128), seed=3)
    out = op(*inputs.qkv, **inputs.tensors)
    scales = (inputs.tensors[f"{name}_scale"] for name in "qkv")
    wide = [x.float() * scale[:, None] for x, scale in zip(inputs.qkv, scales, strict=True)]
    other = op(*(x.bfloat16() for x in wide))
    # the bf16 call rounds what the bytes stand for; the bytes themselves are exact
    assert float((out.float() - other.float()).abs().max()) < 0.05
    assert float(other.float().abs().max()) > 0.5


def test_a_call_like_an_earlier_one_reads_its_own_scales():
    op = compile_op(FLASH)
    for seed in range(4):
        inputs = drawn(Shape(1, 333, 333, 2, 2, 64, 64), seed=seed)
        poison()
        hold(op(*inputs.qkv, **inputs.tensors), inputs)


def test_twice_the_scale_of_v_is_twice_the_output_and_runs_are_alike():
    op = compile_op(FLASH)
    inputs = drawn(Shape(1, 1000, 1000, 4, 2, 128, 128), seed=5)
    twice = {**inputs.tensors, "v_scale": inputs.tensors["v_scale"] * 2}
    first = op(*inputs.qkv, **inputs.tensors)
    assert torch.equal(first, op(*inputs.qkv, **inputs.tensors))
    assert torch.equal(first * 2, op(*inputs.qkv, **twice))


def test_v_may_lie_with_its_tokens_adjacent():
    op = compile_op(FLASH)
    inputs = drawn(Shape(2, 512, 512, 4, 2, 64, 64), seed=6)
    turned = inputs.v.transpose(1, 3).contiguous().transpose(1, 3)
    hold(op(inputs.q, inputs.k, turned, **inputs.tensors), inputs)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_gives_nan_in_its_head_alone(wrong):
    op = compile_op(FLASH)
    inputs = drawn(Shape(1, 100, 100, 2, 2, 64, 64), seed=7)
    scale = inputs.tensors["q_scale"].clone()
    scale[1] = wrong
    out = op(*inputs.qkv, **{**inputs.tensors, "q_scale": scale})
    assert out[:, :, 1].isnan().all()
    assert out[:, :, 0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_an_output_has_the_type_that_is_asked_for(dtype):
    op = compile_op(FLASH)
    inputs = drawn(Shape(1, 300, 300, 2, 2, 64, 64), seed=8)
    out = op(*inputs.qkv, out_dtype=dtype, **inputs.tensors)
    assert out.dtype == dtype
    hold(out.bfloat16(), inputs)


def test_a_cuda_graph_holds_a_call():
    op = compile_op(FLASH)
    inputs = drawn(Shape(1, 256, 256, 2, 2, 64, 64), seed=9)
    want = op(*inputs.qkv, **inputs.tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(*inputs.qkv, **inputs.tensors)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


def test_a_compiled_model_sees_the_type_of_the_output():
    op = compile_op(FLASH)
    inputs = drawn(Shape(1, 200, 200, 2, 2, 64, 64), seed=10)

    def model(q, k, v, tensors):
        return op(q, k, v, **tensors) * 2

    got = torch.compile(model, fullgraph=True)(*inputs.qkv, inputs.tensors)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, op(*inputs.qkv, **inputs.tensors) * 2)
