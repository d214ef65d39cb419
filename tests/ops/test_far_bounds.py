"""Declared bounds past every position: a head that "has no window" is often given 2**31 - 1."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op

DECLARED = """
[window]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "window(n[b], 5)"
inputs.n = { shape = ["b"] }

[both]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "window(9, n[b])"
inputs.n = { shape = ["b"] }

[far]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & ~window(n[b])"
inputs.n = { shape = ["b"] }

[behind]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "~prefix(n[b])"
inputs.n = { shape = ["b"] }

[kept]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "(causal | prefix(n[b])) & blocks(table, 16)"
inputs.n = { shape = ["b"] }
inputs.table = { shape = ["i/16", "j/16"] }
"""
# the last position of 70 keys, and what stands for no bound
FAR = [2**24, 10**9, 2**31 - 1, 2**31, 2**40, 2**62, float("inf")]


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def visible(name: str, n: float, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    i, j = rows[:, None], keys[None, :]
    return {
        "window": (j >= i - n) & (j <= i + 5),
        "both": (j >= i - 9) & (j <= i + n),
        "far": (j <= i) & (j < i - n),
        "behind": j >= n,
        "kept": (j <= i) | (j < n),
    }[name].expand(len(rows), len(keys))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", loads(DECLARED))
def test_a_bound_of_any_size_is_one_past_every_position(name, sign, ops):
    q, k, v = (torch.randn(len(FAR), tokens, 1, 16) for tokens in (50, 70, 70))
    table = {"table": torch.ones(4, 5)} if name == "kept" else {}
    whole = [sign * int(n) for n in FAR[:-1]]
    halves = [(torch.tensor(whole), slice(0, -1))]
    halves.append((torch.tensor([sign * n for n in FAR]), slice(None)))
    scores = torch.einsum("bihd,bjhd->bij", q, k).double() / 4
    rows, keys = torch.arange(50.0) + 20, torch.arange(70.0)
    seen = torch.stack([visible(name, sign * n, rows, keys) for n in FAR])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = torch.einsum("bij,bjhc->bihc", weights, v.double()).float()
    for n, batch in halves:
        out = ops[name](q[batch], k[batch], v[batch], n=n, **table)
        torch.testing.assert_close(out, expected[batch], rtol=1e-5, atol=1e-5)
