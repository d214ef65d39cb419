"""Decode of convolutions: steps, prefills in pieces and one whole call are one and the same."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.cli.fit import fit_plans
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.errors import InputError, PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.convolution import FilterShape, draw_filter
from tests.ops.convolutions import CONVOLUTIONS, dense

CAUSAL = ["gated", "past", "sparse"]
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def drawn(name, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    return draw_filter(
        CONVOLUTIONS[name], FilterShape.of(*size), dtype, generator, torch.device("cpu")
    )


def part(tensors, start, stop):
    """Declared tensors of some tokens."""
    return {key: x[:, start:stop] if x.dim() == 3 else x for key, x in tensors.items()}


@pytest.mark.parametrize("taps", [7, 61])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_prefill_in_pieces_and_steps_are_the_whole_convolution(name, taps):
    """The ring wraps for few taps, and is never full for many."""
    op = compile_op(CONVOLUTIONS[name])
    v, tensors = drawn(name, (3, 48, 2, taps))
    expected = dense(name, v, tensors)
    state = op.init_state(3, 2, taps, dtype=v.dtype, device="cpu")
    found = []
    for start, stop in ((0, 11), (11, 12), (12, 40)):
        o, state = op.prefill(v[:, start:stop], state, **part(tensors, start, stop))
        found.append(o)
    for place in range(40, 48):
        o, state = op.step(v[:, place : place + 1], state, **part(tensors, place, place + 1))
        found.append(o)
    assert state.lengths.tolist() == [48] * 3
    error = (torch.cat(found, 1) - expected).norm() / expected.norm()
    assert error < BOUNDS[torch.float32]
    last = (found[-1] - expected[:, 47:]).norm() / expected[:, 47:].norm()
    assert last < BOUNDS[torch.float32]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_steps_from_the_first_token_on_agree_in_every_dtype(dtype):
    op = compile_op(CONVOLUTIONS["gated"])
    v, tensors = drawn("gated", (2, 9, 3, 5), dtype)
    state = op.init_state(2, 3, 5, dtype=dtype, device="cpu")
    rows = []
    for place in range(9):
        o, _ = op.step(v[:, place : place + 1], state, **part(tensors, place, place + 1))
        rows.append(o)
    expected = dense("gated", v, tensors)
    assert (torch.cat(rows, 1).double() - expected).norm() / expected.norm() < BOUNDS[dtype]


def test_a_step_compiles_for_an_h100():
    op = compile_op(CONVOLUTIONS["gated"], device="h100")
    request = op.request(None, "bf16", None, False, workload=Workload(64, 1, 1, 768, 768, 4096))
    (fitted,) = fit_plans([plans(replace(request, phase="decode"))], jobs=1)
    (compiled,) = fitted.compiled
    assert not compiled.spill_stores
    assert fitted.plan.passes[0].cost.hbm_bytes > 2 * 64 * 768 * 4096


def test_a_clone_goes_on_by_itself_and_a_reset_begins_anew():
    op = compile_op(CONVOLUTIONS["sparse"])
    v, tensors = drawn("sparse", (1, 4, 2, 6))
    state = op.init_state(1, 2, 6, dtype=v.dtype, device="cpu")
    first, _ = op.step(v[:, :1], state, **tensors)
    other = state.clone()
    op.step(v[:, 1:2], state, **tensors)
    assert other.lengths.tolist() == [1]
    state.reset()
    again, _ = op.step(v[:, :1], state, **tensors)
    assert torch.equal(first, again)


def test_what_cannot_decode_says_why():
    with pytest.raises(PlanError, match="its filter weighs tokens that come later"):
        compile_op(CONVOLUTIONS["around"]).init_state(1, 2, 6, device="cpu")
    op = compile_op(CONVOLUTIONS["sparse"])
    v, tensors = drawn("sparse", (1, 4, 2, 6))
    state = op.init_state(1, 2, 7, dtype=v.dtype, device="cpu")
    with pytest.raises(InputError, match=r"the ring is \[1, 2, 7\] .* asks for \[1, 2, 6\]"):
        op.step(v[:, :1], state, **tensors)
    state = op.init_state(1, 2, 6, dtype=v.dtype, device="cpu")
    with pytest.raises(InputError, match="a step takes one token, not 4"):
        op.step(v, state, **tensors)
    with pytest.raises(InputError, match="decode has no backward"):
        op.step(v[:, :1].requires_grad_(), state, **tensors)
