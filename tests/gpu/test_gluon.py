"""The second backend's kernels against the formula: features, ragged shapes, layouts, bits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.launch import used_tensors
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.built import store_plan
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend, pt
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs

pytestmark = pytest.mark.gpu
VARIANTS = loads((Path(__file__).parent / "gluon_variants.toml").read_text(encoding="utf-8"))
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@cache
def op_of(name: str) -> Op:
    return compile_op(VARIANTS[name], backend="gluon")


@cache
def plans_of(name: str, dim: int, dtype: str) -> tuple[Plan, ...]:
    return plans(op_of(name).request((dim, dim), dtype, None, False))


def drawn(variant: Variant, shape: Shape, dtype: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return draw_inputs(variant, shape, DTYPES[dtype], generator, torch.device("cuda"))


def poison() -> None:
    """Fill what the allocator hands out next with NaN: an element that nobody writes shows."""
    blocks = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(8, 24)]
    del blocks


def launch(plan: Plan, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    module = load_module(store_plan(plan))
    poison()
    return module.forward(*inputs.qkv, *(inputs.tensors[name] for name in used_tensors(plan)))


def hold(name: str, shape: Shape, dtype: str, *, seed: int = 0, rank: int = 0) -> None:
    plan = plans_of(name, shape.qk, dtype)[rank]
    variant = VARIANTS[name]
    inputs = drawn(variant, shape, dtype, seed)
    qkv, tensors = inputs.qkv, inputs.tensors
    ref = attend(variant, *qkv, tensors, return_lse=True)
    types = {"dtype": torch.float32, "rounding": DTYPES[dtype]}
    rounded = attend(variant, *qkv, tensors, return_lse=True, **types)
    out, lse = launch(plan, inputs)
    verdict = check(out, ref.out, rounded.out)
    assert verdict.passed, f"{name} {shape} {dtype} {plan.passes[-1]}: {verdict}"
    assert verdict.zeros_fail or verdict.trivial, f"{name} {shape}: zeros would pass"
    verdict = check_lse(lse, ref.lse, rounded.lse if "fast_tanh" in plan.helpers else None)
    assert verdict.passed, f"the lse of {name} {shape} {dtype} {plan.passes[-1]}: {verdict}"


@pytest.mark.parametrize("tokens", [1, 63, 128, 1000])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_feature_is_its_formula_at_any_length(name, tokens):
    hold(name, Shape(2, tokens, tokens, 4, 2, 64, 64), "bf16", seed=tokens)


@pytest.mark.parametrize("name", ["capped", "banded", "paired", "sunk"])
def test_fp16_is_right_too(name):
    hold(name, Shape(2, 500, 500, 2, 2, 64, 64), "fp16")


@pytest.mark.parametrize("dim", [80, 96, 128, 256])
@pytest.mark.parametrize("name", ["plain", "windowed"])
def test_wide_and_odd_heads_are_right(name, dim):
    hold(name, Shape(1, 333, 333, 4, 1, dim, dim, strided=True), "bf16")


@pytest.mark.parametrize("lengths", [(1, 1000), (100, 333), (333, 100), (640, 64)])
@pytest.mark.parametrize(
    "name", ["causal", "plain", "windowed", "banded", "prompted", "anchored", "packed"]
)
def test_queries_stand_at_the_last_keys(name, lengths):
    """With more queries than keys the first rows see nothing: 0, and an lse of -inf."""
    hold(name, Shape(2, *lengths, 4, 2, 64, 64), "bf16")


@pytest.mark.parametrize("rank", range(8))
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_every_tile_is_right(dim, rank):
    if rank >= len(plans_of("windowed", dim, "bf16")):
        pytest.skip("the planner has fewer tiles for such heads")
    hold("windowed", Shape(1, 777, 777, 2, 1, dim, dim), "bf16", rank=rank)


def persistent(name: str, dim: int, dtype: str = "bf16") -> int:
    """The rank of the first plan whose programs take several places."""
    found = plans_of(name, dim, dtype)
    return next(n for n, plan in enumerate(found) if "P" in plan.passes[-1].tile)


# one place, fewer places than programs, some more, many a program; even and odd tiles a head
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 333, 4), (3, 1153, 16), (4, 2000, 32)])
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "causal",
        "windowed",
        "paired",
        "sunk",
        "bounded",
        "anchored",
        "scattered",
        "packed",
        "tabled",
    ],
)
@pytest.mark.parametrize("dim", [64, 128])
def test_persistent_programs_give_the_formula_at_every_place(name, dim, shape):
    batch, tokens, heads = shape
    hkv = max(1, heads // 4)
    sizes = Shape(batch, tokens, tokens, heads, hkv, dim, dim)
    hold(name, sizes, "bf16", rank=persistent(name, dim))


@pytest.mark.parametrize("lengths", [(100, 3333), (3333, 100), (1, 5000)])
@pytest.mark.parametrize("name", ["causal", "windowed"])
def test_persistent_programs_know_where_queries_stand(name, lengths):
    shape = Shape(4, *lengths, 16, 8, 128, 128)
    hold(name, shape, "bf16", rank=persistent(name, 128))


def test_ten_runs_of_persistent_programs_give_the_same_bits():
    plan = plans_of("windowed", 128, "bf16")[persistent("windowed", 128)]
    inputs = drawn(VARIANTS["windowed"], Shape(4, 2000, 2000, 16, 4, 128, 128), "bf16", 6)
    first = launch(plan, inputs)
    for _ in range(9):
        again = launch(plan, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("name", "dim"), [("causal", 64), ("windowed", 128), ("capped", 128), ("anchored", 64)]
)
def test_ten_runs_give_the_same_bits(name, dim):
    plan = plans_of(name, dim, "bf16")[0]
    inputs = drawn(VARIANTS[name], Shape(2, 2000, 2000, 8, 2, dim, dim), "bf16", 5)
    first = launch(plan, inputs)
    for _ in range(9):
        again = launch(plan, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_op_runs_gluon_where_it_is_asked_to():
    op = op_of("sloped")
    inputs = drawn(VARIANTS["sloped"], Shape(2, 300, 300, 4, 2, 64, 64), "bf16", 3)
    ref = op.reference(*inputs.qkv, **inputs.tensors)
    rounded = pt(op.variant, *inputs.qkv, inputs.tensors)
    for _ in range(3):  # the first call, the recorded one, the replayed one
        assert check(op(*inputs.qkv, **inputs.tensors), ref, rounded).passed
    (built,) = op.built_plans.by_kind.values()
    assert built.plan.backend == "gluon"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "dim"), [("sloped", 64), ("biased", 128), ("windowed", 80)])
def test_the_drivers_launch_and_a_replay_give_the_bits_of_tritons(name, dim, dtype):
    """Of other tensors than those whose descriptors were encoded."""
    op = compile_op(VARIANTS[name], backend="gluon")
    shape = Shape(2, 333, 333, 4, 2, dim, dim, strided=True)
    plan = plans_of(name, dim, dtype)[0]
    for seed in range(4):  # Triton's, the driver's, recorded, replayed
        inputs = drawn(VARIANTS[name], shape, dtype, seed)
        poison()
        found = op(*inputs.qkv, return_lse=True, **inputs.tensors)
        for ours, tritons in zip(found, launch(plan, inputs), strict=True):
            assert torch.equal(ours, tritons), f"call {seed}"


def test_gradients_of_a_gluon_op_come_from_triton():
    op = compile_op(VARIANTS["causal"], backend="gluon")
    portable = compile_op(VARIANTS["causal"])
    inputs = drawn(VARIANTS["causal"], Shape(1, 200, 200, 2, 2, 64, 64), "bf16", 4)
    wanted = torch.randn_like(inputs.v)
    found = []
    for each in (op, portable):
        leaves = [x.detach().clone().requires_grad_() for x in inputs.qkv]
        found.append(torch.autograd.grad(each(*leaves), leaves, wanted))
    for ours, other in zip(*found, strict=True):
        assert float((ours - other).abs().max()) <= 0.02 * float(other.abs().max())


def test_a_layout_that_the_copy_engine_cannot_read_is_refused():
    op = op_of("causal")
    make = lambda: torch.randn(1, 64, 2, 64, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    q, k, v = make(), make(), make()
    with pytest.raises(InputError, match="cannot read k: its channels are 2 elements apart"):
        op(q, torch.randn(1, 64, 2, 128, device="cuda", dtype=q.dtype)[..., ::2], v)
    shifted = torch.randn(64 * 128 + 1, device="cuda", dtype=q.dtype)[1:].view(1, 64, 2, 64)
    op(q, k, v)
    with pytest.raises(InputError, match="cannot read q: its address is no multiple of 16"):
        op(shifted, k, v)
