"""How `torch.vmap` runs the inner operators: a call an entry, stacked along a new first axis.

Copied as it is into wheels. Entries are not folded into the batch: declared tensors have no batch
axis that they could be folded into, so what is fast has its batch in its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def batch_by_entry(operator: Any, library: Any) -> None:
    """Let `torch.vmap` batch an operator of `library`, which returns a tensor or a list of them."""
    name = f"{library.ns}::{operator.__name__}"
    torch.library.register_vmap(name, _by_entry(operator), lib=library)


def _by_entry(operator: Any) -> Callable[..., tuple[Any, Any]]:
    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        calls = [
            operator(*(_entry(arg, dim, place) for arg, dim in zip(args, in_dims, strict=True)))
            for place in range(info.batch_size)
        ]
        if isinstance(calls[0], torch.Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(results) for results in zip(*calls, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


def _entry(arg: Any, dim: Any, place: int) -> Any:
    """What entry `place` of an argument is; `dim` is its batched axis, of a list one each."""
    if isinstance(arg, (list, tuple)):
        return [_entry(x, d, place) for x, d in zip(arg, dim, strict=True)]
    return arg if dim is None else arg.select(dim, place)
