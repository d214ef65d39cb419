"""Gradients of the reference: autograd through the formula, block by block.

Rows do not depend on each other, so each block's gradients are taken and its graph freed before
the next: memory stays that of one block, and a sequence of 16,384 tokens fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.dsl.sequences import alone_of
from attnc.dsl.variant import Variant
from attnc.ops.reference.block import blocks
from attnc.ops.reference.run import Run
from attnc.ops.sequences import sequences_of


@dataclass(frozen=True, slots=True)
class Incoming:
    """Gradients that come in: of o, and where there is one of lse or of the final state."""

    out: Tensor
    lse: Tensor | None = None
    state: Tensor | None = None


def reference_gradients(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor],
    incoming: Incoming,
    *,
    dtype: torch.dtype = torch.float64,
    rounding: torch.dtype | None = None,
    initial_state: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by name: q, k, v, every declared tensor with `grad = true`, initial_state.

    Computed in `dtype`; with `rounding`, every intermediate and its gradient are rounded to it,
    which is what eager torch in that dtype gets. Shapes are those of the inputs.
    """
    if variant.mask_form.packed:
        return _sequence_gradients(
            variant, q, k, v, tensors, incoming, initial_state, dtype=dtype, rounding=rounding
        )
    leaves = {name: _leaf(x, dtype) for name, x in (("q", q), ("k", k), ("v", v))}
    declared = {d.name: d for d in (*variant.params, *variant.inputs)}
    given = {
        name: _leaf(x, dtype) if declared[name].grad else x.detach().to(dtype)
        for name, x in tensors.items()
    }
    leaves |= {name: x for name, x in given.items() if declared[name].grad}
    if initial_state is not None:
        leaves["initial_state"] = _leaf(initial_state, dtype)
    totals = {name: torch.zeros_like(x) for name, x in leaves.items()}
    with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
        run = Run(
            variant, leaves["q"], leaves["k"], leaves["v"], given, dtype, rounding,
            leaves.get("initial_state"),
        )  # fmt: skip
        # the decays' sums are shared by all blocks: their gradient is collected, then taken once
        sums = run.decay_sums()
        held = None if sums is None else sums.detach().requires_grad_(sums.requires_grad)
        collected = None if held is None else torch.zeros_like(held)
        wanted = [*leaves.values(), *([held] if held is not None and held.requires_grad else [])]

        def take(loss: Tensor) -> None:
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            for name, gradient in zip(leaves, found, strict=False):
                if gradient is not None:
                    totals[name] += gradient
            if len(found) > len(leaves) and found[-1] is not None:
                assert collected is not None
                collected.add_(found[-1])

        for block in blocks(run, held):
            place = (block.batch, block.rows, block.heads)
            values, lse = block.attended()
            values = values if rounding is None else run.round(values)
            loss = (values.transpose(1, 2) * incoming.out[place].to(dtype)).sum()
            if lse is not None and incoming.lse is not None:
                weight = incoming.lse[block.batch, block.heads, block.rows].to(dtype)
                seen = lse.isfinite()
                loss = loss + (torch.where(seen, lse, 0) * weight * seen).sum()
            take(loss)
        if incoming.state is not None:
            take((run.final_state(held) * incoming.state.to(dtype)).sum())
        if sums is not None and sums.requires_grad and collected is not None:
            found = torch.autograd.grad(sums, list(leaves.values()), collected, allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    totals[name] += gradient
    # eager torch hands these back in the inputs' own dtype
    return {
        name: run.round(total) if name in {"q", "k", "v"} else total
        for name, total in totals.items()
    }


def _sequence_gradients(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor],
    incoming: Incoming,
    initial_state: Tensor | None,
    *,
    dtype: torch.dtype,
    rounding: torch.dtype | None,
) -> dict[str, Tensor]:
    """Gradients of a packed call: those of each sequence, where it stands."""
    alone = alone_of(variant)
    grads = {d.name for d in (*variant.params, *variant.inputs) if d.grad}
    whole = {"q": q, "k": k, "v": v, **{name: tensors[name] for name in tensors if name in grads}}
    if initial_state is not None:
        whole["initial_state"] = initial_state
    totals = {name: torch.zeros_like(x, dtype=dtype) for name, x in whole.items()}
    for n, part in enumerate(sequences_of(variant, tensors)):
        own = slice(n, n + 1)
        if part.empty:
            if incoming.state is not None and initial_state is not None:
                # the state of no token is the one given
                totals["initial_state"][own] += incoming.state[own].to(dtype)
            continue
        places = {"q": (slice(None), part.rows), "k": (slice(None), part.keys), **part.parts}
        places["v"] = places["k"]
        places["initial_state"] = (own,)
        mine = Incoming(
            incoming.out[places["q"]],
            None if incoming.lse is None else incoming.lse[:, :, part.rows],
            None if incoming.state is None else incoming.state[own],
        )
        found = reference_gradients(
            alone, q[places["q"]], k[places["k"]], v[places["v"]], part.tensors(tensors), mine,
            dtype=dtype, rounding=rounding,
            initial_state=None if initial_state is None else initial_state[own],
        )  # fmt: skip
        for name, gradient in found.items():
            totals[name][places[name]] += gradient
    return totals


def _leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype).requires_grad_()
