"""Weights whose state no program holds: planned at once by pairs, and refused where a state is due.

The polynomial of degree 8 has 12 thousand million monomials of 64 channels: whoever lists them
does not come back.
"""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.errors import PlanError
from attnc.ops.op import compile as compile_op

TEXT = '[huge]\nfeature_map = "taylor(8)"\nscale = 0.05\nmask = "causal"\nnormalize = "sum"\n'
HUGE = compile_op(loads(TEXT)["huge"])


@pytest.mark.timeout(60)
def test_a_weight_of_a_high_degree_runs_by_pairs_with_its_gradients():
    leaves = [torch.randn(1, 9, 2, 64, requires_grad=True) for _ in range(3)]
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    s = 0.05 * torch.einsum("bihk,bjhk->bhij", q, k)
    terms, weights = torch.ones_like(s), torch.ones_like(s)
    for m in range(1, 9):
        terms = terms * s / m
        weights = weights + terms
    weights = weights.tril()
    expected = torch.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdim=True), v)
    out = HUGE(*leaves)
    assert (out - expected).norm() < 1e-5 * expected.norm()
    incoming = torch.randn_like(expected)
    found = torch.autograd.grad(out, leaves, incoming.float())
    wanted = torch.autograd.grad(expected, (q, k, v), incoming)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_a_form_that_keeps_its_state_is_refused_at_once(form):
    with pytest.raises(PlanError, match="holds its state") as caught:
        HUGE.plan(dim=(64, 64), form=form)
    assert "11,969,016,345 features" in str(caught.value)


@pytest.mark.timeout(60)
def test_a_state_that_no_program_holds_is_refused_before_it_is_allocated():
    x = torch.randn(1, 9, 2, 64)
    with pytest.raises(PlanError, match="the parallel form keeps no state"):
        HUGE(x, x, x, return_state=True)
    with pytest.raises(PlanError, match="11,969,016,345 features by 16 columns"):
        HUGE.init_state(1, 2, dim=64, dtype=torch.float32, device="cpu")
