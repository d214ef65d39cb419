"""bfloat16 in the interpreter is bit for bit what torch computes."""

from __future__ import annotations

import pytest
import torch

from attnc.autotune.interpreter import run_interpreted
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import HEADER

EVERY = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
PAIRS = ["x + y", "x - y", "x * y", "x / y", "tl.minimum(x, y)", "tl.maximum(x, y)"]
COMPARISONS = ["x < y", "x <= y", "x == y", "x != y", "x > y", "x >= y"]

ELEMENTWISE = (
    HEADER
    + """
@triton.jit
def kernel(a, b, o, N, BN: tl.constexpr):
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    x = tl.load(a + o_n, mask=o_n < N, other=0.0)
    y = tl.load(b + o_n, mask=o_n < N, other=0.0)
    tl.store(o + o_n, EXPRESSION, mask=o_n < N)


def forward(a, b, dtype):
    o = torch.empty(a.shape, dtype=dtype)
    N = a.numel()
    kernel[(triton.cdiv(N, 8192),)](a, b, o, N, BN=8192)
    return o
"""
)


def evaluate(expression: str, a: torch.Tensor, b: torch.Tensor, dtype=torch.bfloat16):
    source = ELEMENTWISE.replace("EXPRESSION", expression)
    return run_interpreted(store_module(source, "elementwise"), "forward", (a, b, dtype), {})


def assert_same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[want.element_size()]
    assert torch.equal(got.view(bits)[~nan], want.view(bits)[~nan])


def hard_floats() -> torch.Tensor:
    """Random bits, every tie between two bfloat16s and its neighbours, infinities, NaNs."""
    generator = torch.Generator().manual_seed(1)
    anything = torch.randint(-(2**31), 2**31, (60_000,), generator=generator).to(torch.int32)
    ties = (torch.arange(65536, dtype=torch.int64) << 16) + 0x8000
    near = torch.cat([ties - 1, ties, ties + 1])
    near = torch.where(near >= 2**31, near - 2**32, near).to(torch.int32)
    return torch.cat([anything, near]).view(torch.float32)


def test_float32_rounds_to_the_nearest_even():
    x = hard_floats()
    assert_same_bits(evaluate("x.to(tl.bfloat16)", x, x), x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.int64], ids=str)
def test_other_types_round_as_torch_rounds_them(dtype):
    x = torch.cat([torch.randn(4096) * 1e4, torch.arange(-4096, 4096)]).to(dtype)
    assert_same_bits(evaluate("x.to(tl.bfloat16)", x, x), x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_every_bfloat16_widens_as_in_torch(dtype):
    name = f"tl.{str(dtype).removeprefix('torch.')}"
    got = evaluate(f"x.to({name})", EVERY, EVERY, dtype)
    assert_same_bits(got, EVERY.to(dtype))


def test_a_bfloat16_truncates_to_an_integer():
    x = EVERY[EVERY.float().abs() < 1e9]
    assert torch.equal(evaluate("x.to(tl.int32)", x, x, torch.int32), x.to(torch.int32))


def test_rounding_towards_zero_is_there_when_it_is_asked_for():
    x = hard_floats()
    got = evaluate('x.to(tl.bfloat16, fp_downcast_rounding="rtz")', x, x)
    kept = (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    assert torch.equal(got[~x.isnan()], kept[~x.isnan()])


def test_moving_a_bfloat16_keeps_its_bits():
    got = evaluate("x", EVERY, EVERY).view(torch.int16)
    assert torch.equal(got, EVERY.view(torch.int16))
    bits = evaluate("x.to(tl.int16, bitcast=True)", EVERY, EVERY, torch.int16)
    assert torch.equal(bits, EVERY.view(torch.int16))


@pytest.mark.parametrize("expression", [*PAIRS, *COMPARISONS, "tl.where(x < y, x, y)", "-x"])
def test_elementwise_operations_are_those_of_torch(expression):
    x = EVERY[EVERY.isfinite()]
    y = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))]
    names = {
        "tl.minimum": "torch.minimum",
        "tl.maximum": "torch.maximum",
        "tl.where": "torch.where",
    }
    torch_expression = expression
    for ours, theirs in names.items():
        torch_expression = torch_expression.replace(ours, theirs)
    want = eval(torch_expression, {"x": x, "y": y, "torch": torch})  # noqa: S307
    got = evaluate(expression, x, y, want.dtype)
    if want.dtype == torch.bool:
        assert torch.equal(got, want)
    else:
        # equal as numbers: Triton 3.6 negates by subtracting from +0, and min(+0, -0) is either
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got[~want.isnan()], want[~want.isnan()])


def test_a_comparison_can_be_computed_with():
    x = EVERY[EVERY.isfinite()]
    got = evaluate("(x > 1.0).to(tl.bfloat16) + (x > 2.0).to(tl.float32)", x, x, torch.float32)
    assert torch.equal(got, (x > 1).float() + (x > 2).float())


def test_functions_of_the_absolute_value_and_constants_work():
    x = EVERY[EVERY.isfinite()]
    assert_same_bits(evaluate("tl.abs(x)", x, x), x.abs())
    got = evaluate("tl.full([BN], 1.5, tl.bfloat16) * x", x, x)
    assert_same_bits(got, x * 1.5)


MATRIX = (
    HEADER
    + """
@triton.jit
def plus(x, y):
    return x + y


@triton.jit
def kernel(a, b, o, sums, scans, largest, BT: tl.constexpr):
    o_t = tl.arange(0, BT)
    p_t = o_t[:, None] * BT + o_t[None, :]
    b_a = tl.load(a + p_t)
    b_b = tl.load(b + p_t)
    tl.store(o + p_t, tl.dot(b_a, b_b.T))
    tl.store(sums + o_t, tl.reduce(b_a, 1, tl.standard._sum_combine).to(tl.float32))
    tl.store(scans + p_t, tl.associative_scan(b_a, 1, plus).to(tl.float32))
    tl.store(largest + o_t, tl.max(b_a, 1).to(tl.float32))


def forward(a, b):
    shape = a.shape
    o, scans = torch.empty(shape), torch.empty(shape)
    sums, largest = torch.empty(shape[:1]), torch.empty(shape[:1])
    kernel[(1,)](a, b, o, sums, scans, largest, BT=32)
    return o, sums, scans, largest
"""
)


def test_dot_reductions_and_scans_see_values_and_not_bits():
    # small integers: every product, sum and rounding is exact
    a = torch.randint(-3, 4, (32, 32)).bfloat16()
    b = torch.randint(-3, 4, (32, 32)).bfloat16()
    path = store_module(MATRIX, "matrix")
    o, sums, scans, largest = run_interpreted(path, "forward", (a, b), {})
    assert torch.equal(o, a.float() @ b.float().T)
    assert torch.equal(sums, a.float().sum(1))
    assert torch.equal(scans, a.float().cumsum(1))
    assert torch.equal(largest, a.float().amax(1))
