"""Packed calls, and the calls of each of their sequences alone, held against each other's bits."""

from __future__ import annotations

from itertools import pairwise

import torch

from attnc.ops.op import Op
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs

CPU = torch.device("cpu")


def starts(lengths: tuple[int, ...], device: torch.device = CPU) -> torch.Tensor:
    """cu_seqlens of these lengths."""
    ends = torch.tensor(lengths).cumsum(0, dtype=torch.int32)
    return torch.nn.functional.pad(ends, (1, 0)).to(device)


def packed_inputs(
    op: Op, lengths: tuple[int, ...], shape: Shape, dtype: torch.dtype, device: torch.device = CPU
) -> Inputs:
    """A packed call of these lengths, its heads and dims those of `shape`."""
    sizes = (shape.hq, shape.hkv, shape.qk, shape.v)
    packed = Shape(1, sum(lengths), sum(lengths), *sizes, sequences=len(lengths))
    variant = op.over_sequences().variant
    inputs = draw_inputs(variant, packed, dtype, torch.Generator().manual_seed(3), device)
    cu = starts(lengths, device)
    return Inputs(*inputs.qkv, {**inputs.tensors, "cu_seqlens_q": cu, "cu_seqlens_k": cu})


def alone(op: Op, inputs: Inputs, part: slice) -> Inputs:
    """The call of one sequence."""
    tensors = {
        tensor.name: inputs.tensors[tensor.name][
            tuple(part if axis == "t" else slice(None) for axis in tensor.shape)
        ]
        for tensor in (*op.variant.params, *op.variant.inputs)
    }
    q, k, v = (x[:, part] for x in inputs.qkv)
    return Inputs(q, k, v, tensors)


def hold_bits(op: Op, lengths: tuple[int, ...], inputs: Inputs, form: str, *, state: bool) -> None:
    """Outputs, states and gradients of a packed call are those of each sequence's own call.

    Gradients of what has no tokens are sums over the sequences, in another order, and left out.
    """
    packed, count = op.over_sequences(), len(lengths)
    q, k, v = inputs.qkv
    do = torch.randn(*q.shape[:3], v.shape[-1]).to(q)
    initial = dfinal = None
    if state:
        sizes = op.state_shape(count, q.shape[2], k.shape[2], q.shape[3], v.shape[3])
        initial = torch.randn(sizes).abs().to(q.device)
        dfinal = torch.randn(sizes).to(q.device)
    out, final, found = run(packed, inputs, form, do, initial, dfinal)
    summed = {d.name for d in (*op.variant.params, *op.variant.inputs) if "t" not in d.shape}
    for n, (start, stop) in enumerate(pairwise(starts(lengths).tolist())):
        part, own = slice(start, stop), slice(n, n + 1)
        if start == stop:
            if initial is not None:
                assert torch.equal(final[own], initial[own])
                assert torch.equal(found["initial_state"][own], dfinal[own])
            continue
        mine = alone(op, inputs, part)
        mine_initial = None if initial is None else initial[own]
        mine_dfinal = None if dfinal is None else dfinal[own]
        single, last, gradients = run(op, mine, form, do[:, part], mine_initial, mine_dfinal)
        assert torch.equal(out[:, part], single), f"o of sequence {n}"
        assert final is None or torch.equal(final[own], last), f"state of sequence {n}"
        for label in set(gradients) - summed:
            place = own if label == "initial_state" else (slice(None), part)
            assert torch.equal(found[label][place], gradients[label]), f"d {label}, sequence {n}"


def run(
    op: Op,
    inputs: Inputs,
    form: str,
    do: torch.Tensor,
    initial: torch.Tensor | None,
    dfinal: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    """o, the final state where one is given, and the gradients by name."""
    grads = {d.name for d in (*op.variant.params, *op.variant.inputs) if d.grad}
    given = {**dict(zip("qkv", inputs.qkv, strict=True)), **inputs.tensors}
    options: dict[str, object] = {"form": form}
    if initial is not None:
        given["initial_state"] = initial
        options["return_state"] = True
    wanted = {"q", "k", "v", "initial_state", *grads}
    given = {n: x.detach().requires_grad_() if n in wanted else x for n, x in given.items()}
    result = op(**given, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    leaves = {name: x for name, x in given.items() if name in wanted}
    incoming = [do, dfinal][: len(outputs)]
    found = torch.autograd.grad(outputs, list(leaves.values()), incoming)
    final = outputs[1].detach() if len(outputs) > 1 else None
    return outputs[0].detach(), final, dict(zip(leaves, found, strict=True))
