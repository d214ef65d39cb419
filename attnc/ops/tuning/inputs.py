"""What a candidate is launched with, and what it has to give: from the reference, by its bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnc.codegen.plan import Plan
from attnc.codegen.text.gradient_launch import gradient_tensors, wanted_names
from attnc.codegen.text.launch import used_tensors
from attnc.ops.op import Op
from attnc.ops.reference.attend import attend
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.criterion import bound_of
from attnc.ops.verification.draw import Inputs, Shape


def launch_facts(
    op: Op, plan: Plan, shape: Shape, inputs: Inputs, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments, expected outputs and bounds of one launch of a plan's phase."""
    forward = [*inputs.qkv, *(inputs.tensors[name] for name in used_tensors(plan))]
    ref = attend(op.variant, *inputs.qkv, inputs.tensors, return_lse=op.softmax)
    rounded = attend(op.variant, *inputs.qkv, inputs.tensors, dtype=torch.float32, rounding=dtype)
    if plan.phase == "forward":
        expected = [ref.out.float()]
        bounds = [allowed(ref.out, rounded.out, dtype)]
        if op.keeps_row_sums:
            # lse and sums of weights are held by the output that they normalise
            rows = (shape.batch, shape.hq, shape.tq)
            expected.append(torch.zeros(rows, device=inputs.q.device))
            bounds.append(float("inf"))
        return {"arguments": forward, "expected": expected, "bounds": bounds}
    generator = torch.Generator().manual_seed(1)
    out = torch.randn(ref.out.shape, generator=generator).to(inputs.q)
    incoming = Incoming(out)
    wide = reference_gradients(op.variant, *inputs.qkv, inputs.tensors, incoming)
    narrow = reference_gradients(
        op.variant, *inputs.qkv, inputs.tensors, incoming, dtype=torch.float32, rounding=dtype
    )
    names = ["q", "k", "v", *wanted_names(plan)]
    tensors = [inputs.tensors[name] for name in gradient_tensors(plan)]
    arguments: list[Tensor] = [*inputs.qkv, *tensors]
    if op.keeps_row_sums:
        given = [inputs.tensors[name] for name in op.tensor_names]
        form = None if shape.tq == shape.tk or op.softmax else "parallel"
        arguments += op.forward(*inputs.qkv, given, None, form, "fp32")[:2]
    arguments.append(out)
    if op.softmax:
        arguments.append(torch.zeros_like(arguments[-2]))
    return {
        "arguments": arguments,
        "expected": [wide[name].float() for name in names],
        "bounds": [4 * allowed(wide[name], narrow[name], dtype) for name in names],
    }


def allowed(ref: Tensor, pt: Tensor, dtype: torch.dtype) -> float:
    """The criterion's bound, with room for fp32's own rounding."""
    return bound_of(ref, pt, dtype) + 1e-4 * float(ref.abs().max())
