"""Weights that are any function of the score, token by token over a cache."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.errors import InputError
from attnc.ops.op import compile as compile_op

DECLARED = loads(
    """
[sigmoid]
feature_map = "sigmoid(s)"
score = "s + bias[h] - (i - j)/8"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
params.bias = { shape = ["h"] }

[windowed]
feature_map = "softplus(s) + 0.1"
score = "s - slope[h]*(i - j)"
scale = "rsqrt(d)"
mask = "causal & window(7)"
normalize = "sum"
params.slope = { shape = ["h"] }

[summed]
feature_map = "1/(1 + s**2)"
score = "s + y[b,j]"
scale = "rsqrt(d)"
mask = "causal"
normalize = "sum"
inputs.y = { shape = ["b", "j"] }
"""
)
KINDS = {
    "cache": {"capacity": 41},
    "pages": {"capacity": 41, "page_size": 8},
    "ring": {},
}


def call(name: str, tokens: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    qkv = [torch.randn(2, tokens, heads, dim, dtype=torch.float64)
           for heads, dim in ((4, 16), (2, 16), (2, 48))]  # fmt: skip
    sizes = {"bias": (4,), "slope": (4,), "y": (2, tokens)}
    variant = DECLARED[name]
    declared = (*variant.params, *variant.inputs)
    return qkv, {d.name: torch.randn(sizes[d.name], dtype=torch.float64) for d in declared}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sigmoid", "cache"), ("sigmoid", "pages"), ("windowed", "cache"), ("windowed", "ring"),
     ("windowed", "pages"), ("summed", "cache")],
)  # fmt: skip
def test_rows_of_prefills_and_steps_are_those_of_the_whole_sequence(name, kind):
    op = compile_op(DECLARED[name])
    (q, k, v), tensors = call(name, 41)
    whole = op.reference(q, k, v, **tensors)
    state = op.init_state(2, (4, 2), dim=(16, 48), dtype=q.dtype, device="cpu", **KINDS[kind])
    state.keys.fill_(float("nan"))
    state.values.fill_(float("nan"))
    rows, start = [], 0
    for end in (1, 20, *range(21, 42)):
        part = [x[:, start:end] for x in (q, k, v)]
        o, state = (op.prefill if end < 21 else op.step)(*part, state, **tensors)
        rows.append(o)
        start = end
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "summed"])
def test_splits_of_a_long_cache_are_added_up(name):
    op = compile_op(DECLARED[name])
    tokens = 700
    (q, k, v), tensors = call(name, tokens)
    state = op.init_state(2, (4, 2), dim=(16, 48), dtype=q.dtype, device="cpu", capacity=tokens)
    last = tokens - 1
    _, state = op.prefill(q[:, :last], k[:, :last], v[:, :last], state, **tensors)
    o, _ = op.step(q[:, last:], k[:, last:], v[:, last:], state, **tensors)
    (built,) = op._decode_plans._same.values()
    assert built.plan.splits > 1
    assert [step.kernel.name for step in built.plan.passes] == ["decode", "combine"]
    expected = op.reference(q, k, v, **tensors)[:, last:]
    torch.testing.assert_close(o, expected, rtol=1e-9, atol=1e-9)


def test_a_step_has_no_lse_and_needs_a_capacity_where_rows_see_ever_more():
    op = compile_op(DECLARED["sigmoid"])
    with pytest.raises(InputError, match="a cache of 'sigmoid' needs a capacity"):
        op.init_state(1, 1, dim=16, device="cpu")
    (q, k, v), tensors = call("sigmoid", 1)
    state = op.init_state(2, (4, 2), dim=(16, 48), dtype=q.dtype, device="cpu", capacity=4)
    with pytest.raises(InputError, match="'sigmoid' has no lse: it belongs to the pointwise"):
        op.step(q, k, v, state, return_lse=True, **tensors)
