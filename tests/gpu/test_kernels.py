"""Compiled kernels against the formula: every shipped variant, the widths that went wrong once."""

from __future__ import annotations

import pytest
import torch

from attnc.autotune.module_cache import load_module
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt
from attnc.ops.shipped import attentions, shipped
from attnc.ops.verification.criterion import check
from attnc.ops.verification.draw import Shape, draw_inputs

pytestmark = pytest.mark.gpu
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def hold(op: Op, shape: Shape, dtype: torch.dtype, *, seed: int = 0, **options) -> None:
    """One call on the GPU, in every form, held by the design's criterion."""
    generator = torch.Generator().manual_seed(seed)
    inputs = draw_inputs(op.variant, shape, dtype, generator, torch.device("cuda"))
    ref = op.reference(*inputs.qkv, **inputs.tensors)
    rounded = pt(op.variant, *inputs.qkv, inputs.tensors)
    for form in op.forms():
        if form == "chunked" and shape.tq != shape.tk:
            continue
        out = op(*inputs.qkv, form=form, **inputs.tensors, **options)
        verdict = check(out, ref, rounded)
        assert verdict.passed, f"{form} {shape} {dtype}: {verdict}"
        assert verdict.zeros_fail, f"{form} {shape} {dtype}: zeros would pass"


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in attentions().items()}


@pytest.mark.parametrize("tokens", [1, 63, 1000])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", attentions())
def test_a_shipped_variant_is_its_formula(name, dtype, tokens, ops):
    qk = 16 if name == "based" else 64
    hold(ops[name], Shape(2, tokens, tokens, 4, 2, qk, 64), DTYPES[dtype])


@pytest.mark.parametrize("name", ["flash", "linear", "lightning"])
def test_fp32_has_the_accuracy_of_fp32(name, ops):
    """A kernel that multiplied in tf32 would err a thousand times as far."""
    hold(ops[name], Shape(1, 300, 300, 2, 2, 64, 64), torch.float32)


@pytest.mark.parametrize("v", [16, 32])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["linear", "lightning"])
def test_narrow_right_operands_are_right_on_sm_90(name, dtype, v, ops):
    """Triton 3.6 miscompiles products of 64 rows by 16 or 32 columns there."""
    hold(ops[name], Shape(2, 1000, 1000, 2, 2, 64, v), DTYPES[dtype])


@pytest.mark.parametrize("dims", [(80, 80), (96, 48), (128, 128), (256, 64)])
@pytest.mark.parametrize("name", ["flash", "retnet"])
def test_wide_and_odd_heads_are_right(name, dims, ops):
    hold(ops[name], Shape(1, 333, 333, 4, 1, *dims, strided=True), torch.bfloat16)


@pytest.mark.parametrize("lengths", [(1, 1000), (100, 333), (333, 100)])
def test_queries_stand_at_the_last_keys(lengths, ops):
    hold(ops["flash"], Shape(2, *lengths, 4, 2, 64, 64), torch.bfloat16)


@pytest.mark.parametrize("name", ["lightning", "linear", "based"])
def test_a_state_handed_on_continues_the_call(name, ops):
    op = ops[name]
    qk = 16 if name == "based" else 64
    generator = torch.Generator().manual_seed(1)
    inputs = draw_inputs(
        op.variant, Shape(1, 1000, 1000, 2, 2, qk, 64), torch.bfloat16, generator,
        torch.device("cuda"),
    )  # fmt: skip
    ref = op.reference(*inputs.qkv, **inputs.tensors)
    rounded = pt(op.variant, *inputs.qkv, inputs.tensors)
    parts, state = [], None
    for part in (slice(0, 321), slice(321, 1000)):
        piece = inputs.tokens(op.variant, part)
        out, state = op(*piece.qkv, initial_state=state, return_state=True, **piece.tensors)
        parts.append(out)
    verdict = check(torch.cat(parts, 1), ref, rounded)
    assert verdict.passed, str(verdict)


def compiled(op: Op) -> int:
    """How many binaries all modules of an op hold."""
    from attnc.autotune.fast_kernel import kernels_of

    count = 0
    for built in op.built_plans.by_kind.values():
        kernels = kernels_of(load_module(built.path)).values()
        caches = [held for kernel in kernels for held in kernel.device_caches.values()]
        count += sum(len(held[0]) for held in caches)
    return count


@pytest.mark.parametrize("name", ["flash", "flash_window", "linear", "lightning"])
def test_one_compile_serves_all_lengths(name):
    """A length that became a constexpr, or was specialised on 1 or 16, would compile again."""
    op = compile_op(shipped()[name])
    counts = []
    # 4,096 first: it is long enough for every kernel of the chunked form to run
    for tokens in (4096, 1000, 128, 100, 16, 1):
        generator = torch.Generator().manual_seed(0)
        shape = Shape(1, tokens, tokens, 2, 2, 64, 64)
        inputs = draw_inputs(op.variant, shape, torch.bfloat16, generator, torch.device("cuda"))
        op(*inputs.qkv, **inputs.tensors)
        counts.append(compiled(op))
    assert counts[0] > 0
    assert set(counts) == {counts[0]}
