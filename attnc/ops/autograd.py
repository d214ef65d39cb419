"""The derived backward under PyTorch's autograd."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from attnc.ops.gradients import PLAIN, once
from attnc.ops.operators import BACKWARD, FORWARD, backward_now, forward_now, op_named


class Attention(torch.autograd.Function):
    """One call of an op; `setup_context` keeps what the backward reads and no more."""

    # under `torch.vmap` forward and backward run with batched tensors, which the operators take
    generate_vmap_rule = True

    @staticmethod
    def forward(
        key: str,
        form: str,
        precision: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        initial_state: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        run = forward_now if eager(q, k, v, initial_state, *tensors) else FORWARD
        return tuple(run(key, q, k, v, list(tensors), initial_state, form, precision))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        key, form, precision, q, k, v, initial_state, *tensors = inputs
        op = op_named(key)
        # softmax keeps o and lse, a normalised state o and its sums, any other state nothing
        kept = list(output[:2]) if op.keeps_row_sums else []
        ctx.save_for_backward(q, k, v, initial_state, *tensors, *kept)
        ctx.key, ctx.form, ctx.precision = key, form, precision
        ctx.counts = (len(tensors), len(kept), len(output))
        if op.keeps_row_sums and not op.softmax:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        # once: checkpointing recomputes them where they are read
        saved = ctx.saved_tensors
        q, k, v, initial_state, *rest = saved
        declared, _, _ = ctx.counts
        tensors, kept = rest[:declared], rest[declared:]
        op = op_named(ctx.key)
        needs = ctx.needs_input_grad[7:]
        names = [name for name, need in zip(op.tensor_names, needs, strict=True) if need]
        incoming = list(gradients)
        if op.keeps_row_sums and not op.softmax:
            del incoming[1]
        run = backward_now if eager(*saved, *gradients) else BACKWARD
        with torch.no_grad():
            results = run(
                ctx.key, q, k, v, tensors, initial_state, kept, incoming, " ".join(names),
                ctx.form, ctx.precision,
            )  # fmt: skip
        dq, dk, dv, *others = results
        of_names = dict(zip(names, others, strict=False))
        of_state = others[-1] if initial_state is not None else None
        found = [dq, dk, dv, of_state, *(of_names.get(name) for name in op.tensor_names)]
        return (None, None, None, *once(ctx.key, found, (*saved, *gradients)))


class ByPosition(inspect.Signature):
    """The signature of a forward whose arguments all come by position: there is nothing to bind.

    `apply` asks a forward for its signature and binds to it at every call, which took half of one.
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments as they came."""
        return _Bound(args) if not kwargs else super().bind(*args, **kwargs)


class _Bound:
    """What `apply` reads of bound arguments."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args, self.kwargs = args, {}  # type: tuple[Any, ...], dict[str, Any]

    def apply_defaults(self) -> None:
        """No forward of ours has any."""


def by_position(forward: Any) -> None:
    """Let `apply` hand a forward its arguments as they come."""
    parameters = inspect.signature(forward).parameters.values()
    assert all(p.default is p.empty for p in parameters), "a default would not be applied"
    forward.__signature__ = ByPosition(list(parameters))


by_position(Attention.forward)


def eager(*tensors: torch.Tensor | None) -> bool:
    """Whether an op may run at once: nobody traces, transforms or listens to what is dispatched.

    The dispatcher costs tens of microseconds, and these cases are what it is for.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(
            x is None
            or (type(x) in PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(x))
            for x in tensors
        )
    )
