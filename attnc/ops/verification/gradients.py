"""Hold a variant's gradients against autograd through its fp64 reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from attnc.errors import PlanError
from attnc.ops.op import Op
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.criterion import check_gradient
from attnc.ops.verification.draw import Inputs, Shape
from attnc.ops.verification.eager_error import Drawn, draws_of, telling
from attnc.ops.verification.report import Row

_DRAWS = 4
_FEW_NUMBERS = 4096
_MANY_PAIRS = 1 << 22


def gradient_rows(
    op: Op,
    inputs: Inputs,
    shape: Shape,
    name: str,
    dtype: torch.dtype,
    forms: tuple[str, ...],
    generator: torch.Generator,
    *,
    initial_state: Tensor | None = None,
    any_order: bool = False,
) -> Iterator[Row]:
    """Gradients of q, k, v, declared tensors and the initial state, in each form.

    Rows say where the op sums dq in `any_order`.
    """
    few_pairs = shape.tq * shape.tk <= _MANY_PAIRS

    def draw() -> Drawn[Incoming]:
        incoming = _incoming(op, inputs, generator, initial_state)
        return Drawn(incoming, *_eager_error(op, inputs, incoming, dtype, initial_state))

    def few(ref: Mapping[str, Tensor]) -> dict[str, int]:
        return {
            label: draws_of(x.numel(), _DRAWS) if few_pairs else 2
            for label, x in ref.items()
            if label not in {"q", "k", "v"} or x.numel() < _FEW_NUMBERS
        }

    drawn = telling(draw, few)
    ref, eager = drawn.ref, drawn.eager
    reduced = set(ref) - {"q", "k", "v"}
    for form in forms:
        state = " with a state given" if initial_state is not None else ""
        state += ", in any order" if any_order else ""
        try:
            found = op_gradients(op, inputs, drawn.incoming, form=form, initial_state=initial_state)
        except PlanError as error:
            # the forward has run: a backward that cannot is a failure, and not the end of the rest
            yield Row.refused(f"gradients, {form} form{state}", name, shape, error.message)
            continue
        for label, gradient in found.items():
            verdict = check_gradient(
                gradient, ref[label], eager[label], dtype, reduced=label in reduced
            )
            yield Row.of(f"d {label}, {form} form{state}", name, shape, verdict)


def _eager_error(
    op: Op,
    inputs: Inputs,
    incoming: Incoming,
    dtype: torch.dtype,
    initial_state: Tensor | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Reference gradients, and how far eager torch in `dtype` is from each at most."""
    ref, rounded = (
        reference_gradients(
            op.variant, *inputs.qkv, inputs.tensors, incoming, initial_state=initial_state,
            dtype=torch.float64 if rounding is None else torch.float32, rounding=rounding,
        )
        for rounding in (None, dtype)
    )  # fmt: skip
    return ref, {label: float((rounded[label] - ref[label]).abs().max()) for label in ref}


def op_gradients(
    op: Op,
    inputs: Inputs,
    incoming: Incoming,
    *,
    form: str | None = None,
    initial_state: Tensor | None = None,
) -> dict[str, Tensor]:
    """The op's own gradients by name, through PyTorch's autograd."""
    leaves = {
        label: x.detach().clone().requires_grad_()
        for label, x in zip("qkv", inputs.qkv, strict=True)
    }
    declared = {d.name: d for d in (*op.variant.params, *op.variant.inputs)}
    tensors = {
        label: x.detach().clone().requires_grad_() if declared[label].grad else x
        for label, x in inputs.tensors.items()
    }
    options: dict[str, Any] = {"form": form, **tensors}
    wanted = {**leaves, **{label: x for label, x in tensors.items() if x.requires_grad}}
    if initial_state is not None:
        wanted["initial_state"] = initial_state.detach().clone().requires_grad_()
        options |= {"initial_state": wanted["initial_state"], "return_state": True}
    if op.softmax:
        options["return_lse"] = True
    with torch.enable_grad():
        result = op(leaves["q"], leaves["k"], leaves["v"], **options)
        outputs = result if isinstance(result, tuple) else (result,)
        gradients = [incoming.out.to(outputs[0].dtype)]
        other = incoming.lse if op.softmax else incoming.state
        if len(outputs) > 1:
            assert other is not None
            gradients.append(other.to(outputs[1].dtype))
        found = torch.autograd.grad(
            outputs, list(wanted.values()), gradients, allow_unused=True, materialize_grads=True
        )
    return dict(zip(wanted, found, strict=True))


def _incoming(
    op: Op, inputs: Inputs, generator: torch.Generator, initial_state: Tensor | None
) -> Incoming:
    q, _, v = inputs.qkv

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(q.device)

    # rounded as the kernels see it, or its rounding would count as theirs
    out = normal(*q.shape[:3], v.shape[-1]).to(q.dtype)
    lse = normal(q.shape[0], q.shape[2], q.shape[1]) if op.softmax else None
    state = None if initial_state is None else normal(*initial_state.shape)
    return Incoming(out, lse, state)
