"""A convolution under PyTorch: two operators that its compiler sees whole, and autograd.

Copied as it is into wheels, where the namespace is the wheel's own.

The operators find their op by the name and digest of the variant, as those of attention do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from attnc.ops.autograd import by_position, eager
from attnc.ops.batching import batch_by_entry
from attnc.ops.gradients import once


class FilterOp(Protocol):
    """What the operators ask of an op, compiled here or shipped as binaries."""

    key: str

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Declared params and inputs, in declared order."""

    def filtered(
        self, v: torch.Tensor, tensors: Sequence[torch.Tensor], form: str | None, precision: str
    ) -> torch.Tensor:
        """o of checked inputs."""

    def gradients(
        self,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        incoming: torch.Tensor,
        wanted: tuple[str, ...],
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """Gradients of v and of the declared tensors in `wanted`."""


_OPS: dict[str, FilterOp] = {}
NAMESPACE = __name__.partition(".")[0]
_LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("convolve(str op, Tensor v, Tensor[] tensors, str form, str precision) -> Tensor")
_LIBRARY.define(
    "convolve_backward(str op, Tensor v, Tensor[] tensors, Tensor incoming, str wanted, str form, "
    "str precision) -> Tensor[]"
)


def register(key: str, op: FilterOp) -> str:
    """Let the operators find an op by a name, which means the same in every process."""
    _OPS.setdefault(key, op)
    return key


def _forward(
    op: str, v: torch.Tensor, tensors: list[torch.Tensor], form: str, precision: str
) -> torch.Tensor:
    return _OPS[op].filtered(v, tensors, form or None, precision)


def _backward(
    op: str, v: torch.Tensor, tensors: list[torch.Tensor], incoming: torch.Tensor, wanted: str,
    form: str, precision: str,
) -> list[torch.Tensor]:  # fmt: skip
    return _OPS[op].gradients(v, tensors, incoming, tuple(wanted.split()), form or None, precision)


def _by_channel(x: torch.Tensor) -> torch.Tensor:
    """An empty [B, T, C] tensor whose tokens are adjacent."""
    batch, tokens, channels = x.shape
    return x.new_empty((batch, channels, tokens)).transpose(1, 2)


def _fake_forward(
    op: str, v: torch.Tensor, tensors: list[torch.Tensor], form: str, precision: str
) -> torch.Tensor:
    return _by_channel(v)


def _fake_backward(
    op: str, v: torch.Tensor, tensors: list[torch.Tensor], incoming: torch.Tensor, wanted: str,
    form: str, precision: str,
) -> list[torch.Tensor]:  # fmt: skip
    named = dict(zip(_OPS[op].tensor_names, tensors, strict=True))
    like = [named[name] for name in wanted.split()]
    made = [_by_channel(x) if x.dim() == 3 else x.new_empty(x.shape) for x in like]
    return [_by_channel(v), *made]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("convolve", _forward, _device)
    _LIBRARY.impl("convolve_backward", _backward, _device)
torch.library.register_fake(f"{NAMESPACE}::convolve", _fake_forward, lib=_LIBRARY)
torch.library.register_fake(f"{NAMESPACE}::convolve_backward", _fake_backward, lib=_LIBRARY)
CONVOLVE: Any = getattr(torch.ops, NAMESPACE).convolve
CONVOLVE_BACKWARD: Any = getattr(torch.ops, NAMESPACE).convolve_backward
batch_by_entry(CONVOLVE, _LIBRARY)
batch_by_entry(CONVOLVE_BACKWARD, _LIBRARY)


class Filtering(torch.autograd.Function):
    """One call of a convolution; the inputs are all that its backward reads."""

    # under `torch.vmap` forward and backward run with batched tensors, which the operators take
    generate_vmap_rule = True

    @staticmethod
    def forward(
        key: str, form: str, precision: str, v: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        run = _forward if eager(v, *tensors) else CONVOLVE
        out: torch.Tensor = run(key, v, list(tensors), form, precision)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.key, ctx.form, ctx.precision, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor) -> tuple[Any, ...]:
        v, *tensors = ctx.saved_tensors
        names = _OPS[ctx.key].tensor_names
        wanted = [n for n, need in zip(names, ctx.needs_input_grad[4:], strict=True) if need]
        run = _backward if eager(v, *tensors, incoming) else CONVOLVE_BACKWARD
        with torch.no_grad():
            dv, *others = run(
                ctx.key, v, tensors, incoming, " ".join(wanted), ctx.form, ctx.precision
            )
        of_names = dict(zip(wanted, others, strict=True))
        found = [dv, *(of_names.get(name) for name in names)]
        return (None, None, None, *once(ctx.key, found, (v, *tensors, incoming)))


by_position(Filtering.forward)
