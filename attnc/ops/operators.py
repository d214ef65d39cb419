"""The inner operators `attnc::forward` and `attnc::backward`, which PyTorch's compiler sees whole.

An operator finds its op by the name and digest of the variant, so a compiled graph means the same
in every process. Neither knows autograd: `autograd.Attention` stands around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from attnc.ops.op import Op

_OPS: dict[str, Op] = {}
_LIBRARY: Any = torch.library.Library("attnc", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "forward(str op, Tensor q, Tensor k, Tensor v, Tensor[] tensors, Tensor? initial_state, "
    "str form, str precision) -> Tensor[]"
)
_LIBRARY.define(
    "backward(str op, Tensor q, Tensor k, Tensor v, Tensor[] tensors, Tensor? initial_state, "
    "Tensor[] kept, Tensor[] gradients, str wanted, str form, str precision) -> Tensor[]"
)


def register(op: Op) -> str:
    """The name by which the operators find an op; the same variant has the same name anywhere."""
    key = f"{op.variant.name}-{op.variant.digest}-{op.planned_for}"
    _OPS.setdefault(key, op)
    return key


def op_named(key: str) -> Op:
    """The op that was registered under a name."""
    return _OPS[key]


def _forward(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    initial_state: torch.Tensor | None,
    form: str,
    precision: str,
) -> list[torch.Tensor]:
    return op_named(op).forward(q, k, v, tensors, initial_state, form or None, precision)


def _backward(
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
    made = [q.new_empty((batch, tokens, heads, v.shape[-1]))]
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
    _LIBRARY.impl("forward", _forward, _device)
    _LIBRARY.impl("backward", _backward, _device)
torch.library.register_fake("attnc::forward", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("attnc::backward", _fake_backward, lib=_LIBRARY)
