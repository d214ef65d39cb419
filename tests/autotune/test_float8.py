"""e4m3 in the interpreter is byte for byte what torch computes, and saturates as hardware does."""

from __future__ import annotations

import pytest
import torch

from attnc.autotune.interpreter import run_interpreted
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import HEADER
from tests.autotune.test_bfloat16 import evaluate

E4M3 = torch.float8_e4m3fn
EVERY = torch.arange(256, dtype=torch.uint8).view(E4M3)

PRODUCT = (
    HEADER
    + """
@triton.jit
def kernel(a, b, o, M: tl.constexpr, N: tl.constexpr):
    r_m = tl.arange(0, M)
    r_n = tl.arange(0, N)
    x = tl.load(a + r_m[:, None] * N + r_n[None, :])
    y = tl.load(b + r_m[:, None] * N + r_n[None, :])
    tl.store(o + r_m[:, None] * M + r_m[None, :], tl.dot(x, tl.trans(y)))


def forward(a, b):
    M, N = a.shape
    o = torch.empty((M, M), dtype=torch.float32)
    kernel[(1,)](a, b, o, M=M, N=N)
    return o
"""
)


def assert_same_bytes(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype == E4M3
    nan = want.float().isnan()
    assert torch.equal(got.float().isnan(), nan)
    assert torch.equal(got.view(torch.uint8)[~nan], want.view(torch.uint8)[~nan])


def hard_floats() -> torch.Tensor:
    """Random floats of all sizes, every tie between two e4m3 numbers with its neighbours, NaN."""
    sizes = torch.randn(20_000) * torch.exp2(torch.randint(-14, 9, (20_000,)).float())
    known = EVERY.float()[:127]
    ties = (known[1:] + known[:-1]) / 2
    near = [ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)]
    hard = torch.cat([sizes, *near, known, torch.tensor([0.0, 1e-30, 448.0, 463.0])])
    return torch.cat([hard, -hard, torch.tensor([float("nan")])]).clamp(-448, 448)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_floats_round_to_the_nearest_even(dtype):
    x = hard_floats().to(dtype)
    assert_same_bytes(evaluate("x.to(tl.float8e4nv)", x, x, E4M3), x.to(E4M3))


def test_a_bfloat16_rounds_to_the_nearest_even():
    x = hard_floats().bfloat16()
    assert_same_bytes(evaluate("x.to(tl.float8e4nv)", x, x, E4M3), x.float().to(E4M3))


def test_what_is_too_large_becomes_the_largest_number():
    x = torch.tensor([449.0, 1e9, float("inf"), -500.0, -float("inf")])
    got = evaluate("x.to(tl.float8e4nv)", x, x, E4M3)
    assert got.float().tolist() == [448.0, 448.0, 448.0, -448.0, -448.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_byte_widens_as_in_torch(dtype):
    name = f"tl.{str(dtype).removeprefix('torch.')}"
    got, want = evaluate(f"x.to({name})", EVERY, EVERY, dtype), EVERY.to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()], want[~want.isnan()])
    assert int(want.isnan().sum()) == 2


def test_a_product_of_bytes_is_that_of_the_numbers_they_stand_for():
    a, b = (torch.randn(32, 64).mul(8).to(E4M3) for _ in range(2))
    got = run_interpreted(store_module(PRODUCT, "product"), "forward", (a, b), {})
    torch.testing.assert_close(got, a.float() @ b.float().T, rtol=1e-6, atol=1e-4)


def test_a_nan_of_an_operand_is_one_of_the_product():
    a, b = (torch.ones(16, 32).to(E4M3) for _ in range(2))
    a[3, 7] = float("nan")
    got = run_interpreted(store_module(PRODUCT, "product"), "forward", (a, b), {})
    assert got[3].isnan().all()
    assert int(got.isnan().sum()) == got.shape[1]
