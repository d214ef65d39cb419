"""The inner operators `attnc::forward` and `attnc::backward`, which PyTorch's compiler sees whole.

Copied as it is into wheels, where the namespace is the wheel's own.

An operator finds its op by the name and digest of the variant, so a compiled graph means the same
in every process. Neither knows autograd: `autograd.Attention` stands around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from attnc.ops.batching import batch_by_entry


class Op(Protocol):
    """What the operators and autograd ask of an op, compiled here or shipped as binaries."""

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Declared params and inputs, in declared order."""

    @property
    def softmax(self) -> bool:
        """Whether there is an lse."""

    @property
    def out_dtype(self) -> torch.dtype | None:
        """The type of the output where it is not that of q."""

    @property
    def keeps_row_sums(self) -> bool:
        """Whether a forward returns lse or normaliser after o."""

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        initial_state: torch.Tensor | None,
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """o, then row sums, then the final state."""

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        initial_state: torch.Tensor | None,
        kept: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        wanted: tuple[str, ...],
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """Gradients of q, k, v, of the declared tensors in `wanted`, and of the initial state."""


NAMESPACE = __name__.partition(".")[0]
_OPS: dict[str, Op] = {}
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "forward(str op, Tensor q, Tensor k, Tensor v, Tensor[] tensors, Tensor? initial_state, "
    "str form, str precision) -> Tensor[]"
)
_LIBRARY.define(
    "backward(str op, Tensor q, Tensor k, Tensor v, Tensor[] tensors, Tensor? initial_state, "
    "Tensor[] kept, Tensor[] gradients, str wanted, str form, str precision) -> Tensor[]"
)


def register(key: str, op: Op) -> str:
    """Let the operators find an op by a name, which means the same in every process."""
    _OPS.setdefault(key, op)
    return key


def op_named(key: str) -> Op:
    """The op that was registered under a name."""
    return _OPS[key]


def forward_now(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    initial_state: torch.Tensor | None,
    form: str,
    precision: str,
) -> list[torch.Tensor]:
    """The forward of a named op, past the dispatcher."""
    return op_named(op).forward(q, k, v, tensors, initial_state, form or None, precision)


def backward_now(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    initial_state: torch.Tensor | None,
    kept: list[torch.Tensor],
    gradients: list[torch.Tensor],
    wanted: str,
    form: str,
    precision: str,
) -> list[torch.Tensor]:
    """The backward of a named op, past the dispatcher."""
    return op_named(op).backward(
        q, k, v, tensors, initial_state, kept, gradients, tuple(wanted.split()), form or None,
        precision,
    )  # fmt: skip


def _fake_forward(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    initial_state: torch.Tensor | None,
    form: str,
    precision: str,
) -> list[torch.Tensor]:
    batch, tokens, heads, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dtype = op_named(op).out_dtype or q.dtype
    made = [q.new_empty((batch, tokens, heads, v.shape[-1]), dtype=dtype)]
    if op_named(op).keeps_row_sums:
        made.append(q.new_empty((batch, heads, tokens), dtype=wide))
    if initial_state is not None:
        made.append(torch.empty_like(initial_state, memory_format=torch.contiguous_format))
    return made


def _fake_backward(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    initial_state: torch.Tensor | None,
    kept: list[torch.Tensor],
    gradients: list[torch.Tensor],
    wanted: str,
    form: str,
    precision: str,
) -> list[torch.Tensor]:
    named = dict(zip(op_named(op).tensor_names, tensors, strict=True))
    like = [q, k, v, *(named[name] for name in wanted.split())]
    if initial_state is not None:
        like.append(initial_state)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("forward", forward_now, _device)
    _LIBRARY.impl("backward", backward_now, _device)
torch.library.register_fake(f"{NAMESPACE}::forward", _fake_forward, lib=_LIBRARY)
torch.library.register_fake(f"{NAMESPACE}::backward", _fake_backward, lib=_LIBRARY)
FORWARD: Any = getattr(torch.ops, NAMESPACE).forward
BACKWARD: Any = getattr(torch.ops, NAMESPACE).backward
batch_by_entry(FORWARD, _LIBRARY)
batch_by_entry(BACKWARD, _LIBRARY)
