"""Tensors whose tokens or channels lie so far apart that 32 bits do not count them in a tile."""

from __future__ import annotations

import mmap

import pytest
import torch

from attnc.autotune import interpreter
from attnc.dsl import loads
from attnc.ops.near import far, near
from attnc.ops.op import compile as compile_op

VARIANTS = loads(
    """
[attention]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s + x[b,i,h]"
value = "w[c]*v"
inputs.x = { shape = ["b", "t", "h"], grad = true }
params.w = { shape = ["c"], grad = true }

[filter]
weight = "w[c, i-j]"
mask = "causal"
params.w = { shape = ["c", "T"], grad = true }
"""
)
APART = 2**26
# of Linux; Python names it from 3.13 on
MAP_NORESERVE = 0x4000


def spread(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The same values at other strides, in memory of which only the touched pages exist."""
    elements = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, elements * x.element_size(), flags=kind)
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


@pytest.fixture
def reached(monkeypatch) -> list[tuple[int, ...]]:
    """The strides of what kernels are called with; nothing that is far goes on to them."""
    seen: list[tuple[int, ...]] = []
    run = interpreter.run_interpreted

    def watched(path, function, tensors, options, *, written=()):
        seen.extend(x.stride() for x in tensors)
        assert all(step < APART for x in tensors for step in x.stride())
        return run(path, function, tensors, options, written=written)

    monkeypatch.setattr(interpreter, "run_interpreted", watched)
    return seen


@pytest.mark.parametrize("strides", [(128, APART, 64, 1), (128, 2, 1, APART)], ids=str)
def test_rows_that_no_tile_reaches_are_copied_forward_and_backward(strides, reached):
    q, k, v, do = torch.randn(4, 1, 40, 2, 64).half()
    given = {"x": torch.randn(1, 40, 2), "w": torch.rand(64)}
    apart = {"x": given["x"], "w": spread(given["w"], (APART,))}
    op = compile_op(VARIANTS["attention"])

    def results(tensors, q, k, v, do):
        leaves = [x.detach().requires_grad_() for x in (q, k, v, *tensors.values())]
        out = op(*leaves[:3], x=leaves[3], w=leaves[4])
        return [out.detach(), *torch.autograd.grad(out, leaves, do)]

    near_ones = results(given, q, k, v, do)
    far_ones = results(apart, *(spread(x, strides) for x in (q, k, v, do)))
    assert reached
    for one, other in zip(near_ones, far_ones, strict=True):
        assert torch.equal(one, other)


def test_taps_that_lie_far_apart_are_copied(reached):
    v, w = torch.randn(2, 40, 3).half(), torch.randn(3, 40)
    op = compile_op(VARIANTS["filter"])
    assert torch.equal(op(v, w=spread(w, (1, APART))), op(v, w=w))
    assert reached


def test_tensors_that_kernels_reach_go_on_as_they_are():
    # a batch entry and a head may lie anywhere, and so may tokens that no tile has together
    for strides in ((2**40, 2**23, 2**40, 1), (64, 64, 64, 64), (0, 0, 0, 0)):
        x = torch.empty(1, device="meta").as_strided((1, 1, 1, 1), strides)
        assert near(x) is x
    x = torch.empty_strided((2, 5000, 2, 64), (2**36, 2**23, 2**31, 1), device="meta")
    assert near(x) is x
    assert not far(torch.empty_strided((2, 32, 2, 64), (2**36, APART, 64, 1), device="meta"))


def test_what_is_copied_is_adjacent():
    x = torch.empty_strided((2, 33, 2, 64), (2**36, APART, 64, 1), device="meta")
    assert far(x)
    assert near(x).is_contiguous()
