"""Rows of 72 or 40 channels begin at whole 16 bytes and are loaded so; others as they lie."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from attnc.autotune.binary_kernel import keeps_promises
from attnc.autotune.compiler import CompileJob, CompilePool, Target
from attnc.autotune.fast_kernel import FastKernel
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.render import render
from attnc.codegen.wide_rows import whole_places
from attnc.ops.built import store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped


def plan_of(name: str, dims: tuple[int, int], phase: str = "forward", dtype: str = "bf16"):
    op = compile_op(shipped()[name], device="h100", backend="triton")
    return plans(of_phase(op.request(dims, dtype, None, False), phase))[0]


def narrow_loads(plan, *, general: bool = False) -> int:
    """Loads of one 16-bit element, in all kernels of a plan compiled for sm_90."""
    path = store_plan(plan)
    specs = kernel_specs(plan, general=general)
    jobs = [CompileJob(path, spec, Target.parse("cuda:90")) for spec in specs]
    with CompilePool(1) as pool:
        texts = [verdict.ptx for verdict in pool.map(jobs)]
    return sum(len(re.findall(r"ld\.global[\w.]*\.b16", text)) for text in texts)


@pytest.mark.parametrize(
    ("name", "dims", "phase"),
    [("flash", (72, 72), "forward"), ("flash", (40, 88), "backward"),
     ("lightning", (72, 40), "forward"), ("flash", (100, 72), "forward")],
)  # fmt: skip
def test_rows_of_eights_are_loaded_wide(name, dims, phase):
    plan = plan_of(name, dims, phase)
    assert narrow_loads(plan) == 0
    # the one for all other calls was told nothing
    assert narrow_loads(plan, general=True) > 0


@pytest.mark.parametrize(
    ("dims", "dtype", "told"),
    [((72, 72), "bf16", 8), ((64, 80), "bf16", 0), ((36, 64), "bf16", 4), ((36, 64), "fp32", 4),
     ((64, 42), "fp16", 2), ((33, 64), "bf16", 0), ((72, 72), "fp64", 0), ((72, 100), "bf16", 4)],
)  # fmt: skip
def test_the_compiler_is_told_where_it_does_not_see_it_and_where_it_is_so(dims, dtype, told):
    text = render(plan_of("flash", dims, dtype=dtype))
    found = re.findall(r"else (\d+)\n", text)
    assert found == ([str(told)] if told else [])
    assert ("// RU * RU" in text) == bool(told)


def test_strides_that_are_no_multiples_give_the_same_numbers():
    op = compile_op(shipped()["flash"])
    wide = torch.randn(1, 70, 2, 3, 75).to(torch.float32)
    # rows 225 elements apart, the first of them at an odd place
    q, k, v = (wide[..., n, 1:73] for n in range(3))
    assert q.stride(2) % 4
    expected = op.reference(q, k, v)
    torch.testing.assert_close(op(q, k, v), expected.float(), rtol=1e-4, atol=1e-5)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    grads = torch.autograd.grad(op(*leaves).square().sum(), leaves)
    wanted = torch.autograd.grad(op.reference(*leaves).square().sum(), leaves)
    for gradient, exact in zip(grads, wanted, strict=True):
        torch.testing.assert_close(gradient, exact.float(), rtol=1e-3, atol=1e-4)


def test_a_launch_says_so_of_strides_that_are():
    plan = plan_of("flash", (72, 72))
    (step,) = plan.passes
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: seen.append(constants["RU"])

    kernel = FastKernel(Kernel(), {"RU": 8}, SimpleNamespace(), ("RU", whole_places(step.kernel)))
    # b, t, h of q, k and v: their channels' strides are 1
    rows = [72 * 16 * 99, 72 * 16, 72, 1] * 3
    for place, stride in ((0, rows[0]), (2, 36), (3, 2)):
        numbers = rows.copy()
        numbers[place] = stride
        kernel._run((1, 1, 1), [], tuple(numbers))
    assert seen == [8, 1, 8]


def test_a_shipped_binary_is_held_to_what_it_was_told():
    (usual,) = kernel_specs(plan_of("flash", (72, 72)))
    numbers = [a for a in usual.arguments if not a.type.startswith("*")]
    promised = [{"type": a.type, "divisible16": a.divisible16, "multiple": a.multiple,
                 "value": a.value} for a in numbers]  # fmt: skip
    given = [a.value if a.type == "constexpr" else 72 * 16 for a in numbers]
    assert keeps_promises(promised, given)
    given[2] = 36
    assert not keeps_promises(promised, given)


def test_the_binary_for_all_other_calls_divides_no_stride_by_more_than_1():
    """Over 8 and times it again, a stride of 36 would be one of 32."""
    plan = plan_of("flash", (72, 72))
    values = [
        argument.value
        for general in (False, True)
        for spec in kernel_specs(plan, general=general)
        for argument in spec.arguments
        if argument.name == "RU"
    ]
    assert values == [8, 1]
