"""The second backend's gradients against autograd through the formula: features, shapes, bits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.gradient_launch import gradient_tensors, wanted_names
from attnc.dsl.toml_file import loads
from attnc.ops.built import store_plan
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.criterion import check_gradient
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs

pytestmark = pytest.mark.gpu
TOML = (Path(__file__).parent / "gluon_variants.toml").read_text(encoding="utf-8")
# every declared tensor wants its gradient
VARIANTS = loads(TOML.replace("] }", "], grad = true }"))
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@cache
def op_of(name: str) -> Op:
    return compile_op(VARIANTS[name], backend="gluon")


@cache
def plans_of(name: str, dim: int, dtype: str) -> tuple[Plan, ...]:
    from attnc.codegen.planning.backend import of_phase

    request = op_of(name).request((dim, dim), dtype, None, False)
    found = plans(of_phase(request, "backward"))
    assert {plan.backend for plan in found} == {"gluon"}
    return found


def drawn(name: str, shape: Shape, dtype: str, seed: int) -> tuple[Inputs, Incoming]:
    generator = torch.Generator().manual_seed(seed)
    device = torch.device("cuda")
    inputs = draw_inputs(VARIANTS[name], shape, DTYPES[dtype], generator, device)
    q, _, v = inputs.qkv
    out = torch.randn(*q.shape[:3], v.shape[-1], generator=generator).to(device, q.dtype)
    lse = torch.randn(q.shape[0], q.shape[2], q.shape[1], generator=generator).to(device)
    return inputs, Incoming(out, lse)


def launch(plan: Plan, inputs: Inputs, incoming: Incoming) -> list[torch.Tensor]:
    found = attend(plan.variant, *inputs.qkv, inputs.tensors, return_lse=True, dtype=torch.float32)
    out, lse = found.out.to(inputs.q.dtype), found.lse.float().contiguous()
    blocks = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(8, 24)]
    del blocks
    declared = [inputs.tensors[name] for name in gradient_tensors(plan)]
    run = load_module(store_plan(plan)).backward
    return list(run(*inputs.qkv, *declared, out.contiguous(), lse, incoming.out, incoming.lse))


def hold(name: str, shape: Shape, dtype: str, *, seed: int = 0, rank: int = 0) -> None:
    plan = plans_of(name, shape.qk, dtype)[rank]
    inputs, incoming = drawn(name, shape, dtype, seed)
    arguments = (VARIANTS[name], *inputs.qkv, inputs.tensors, incoming)
    ref = reference_gradients(*arguments)
    eager = reference_gradients(*arguments, dtype=torch.float32, rounding=DTYPES[dtype])
    names = ("q", "k", "v", *wanted_names(plan))
    for label, gradient in zip(names, launch(plan, inputs, incoming), strict=True):
        error = float((eager[label] - ref[label]).abs().max())
        reduced = label not in {"q", "k", "v"}
        # of few numbers a draw may find eager torch lucky in all of them
        error = max(error, 2e-3 * float(ref[label].abs().max())) if reduced else error
        verdict = check_gradient(gradient, ref[label], error, DTYPES[dtype], reduced=reduced)
        assert verdict.passed, f"d {label} of {name} {shape} {dtype} {plan.passes}: {verdict}"


@pytest.mark.parametrize("tokens", [1, 63, 128, 1000])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_a_feature_are_those_of_its_formula_at_any_length(name, tokens):
    hold(name, Shape(2, tokens, tokens, 4, 2, 64, 64), "bf16", seed=tokens)


@pytest.mark.parametrize("name", ["capped", "banded", "paired", "sunk"])
def test_fp16_gradients_are_right_too(name):
    hold(name, Shape(2, 500, 500, 2, 2, 64, 64), "fp16")


@pytest.mark.parametrize("dim", [80, 96, 128])
@pytest.mark.parametrize("name", ["plain", "windowed", "sloped"])
def test_gradients_of_wide_and_odd_heads_are_right(name, dim):
    hold(name, Shape(1, 333, 333, 4, 1, dim, dim, strided=True), "bf16")


@pytest.mark.parametrize("lengths", [(1, 1000), (100, 333), (333, 100), (640, 64)])
@pytest.mark.parametrize(
    "name", ["causal", "plain", "windowed", "banded", "bounded", "anchored", "packed"]
)
def test_gradients_know_that_queries_stand_at_the_last_keys(name, lengths):
    hold(name, Shape(2, *lengths, 4, 2, 64, 64), "bf16")


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("dim", [64, 128])
def test_gradients_by_every_tile_are_right(dim, rank):
    hold("windowed", Shape(1, 777, 777, 2, 1, dim, dim), "bf16", rank=rank)
    hold("plain", Shape(1, 777, 777, 2, 1, dim, dim), "bf16", rank=rank)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["causal", "sloped", "anchored"])
def test_ten_backwards_give_the_same_bits(name, dim):
    plan = plans_of(name, dim, "bf16")[0]
    inputs, incoming = drawn(name, Shape(2, 2000, 2000, 8, 2, dim, dim), "bf16", 5)
    first = launch(plan, inputs, incoming)
    for _ in range(9):
        again = launch(plan, inputs, incoming)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_op_takes_gluon_backward_and_any_layout_of_the_gradient_that_comes_in():
    op = op_of("causal")
    inputs, _ = drawn("causal", Shape(1, 300, 300, 4, 2, 64, 64), "bf16", 3)
    portable = compile_op(VARIANTS["causal"], backend="triton")
    found = []
    for each in (op, portable):
        leaves = [x.detach().clone().requires_grad_() for x in inputs.qkv]
        each(*leaves).sum().backward()  # one number, expanded
        found.append([x.grad for x in leaves])
    for ours, other in zip(*found, strict=True):
        assert float((ours - other).abs().max()) <= 0.02 * float(other.abs().max())
    backends = {built.plan.phase: built.plan.backend for built in op.built_plans.by_kind.values()}
    assert backends == {"forward": "gluon", "backward": "gluon"}
