"""What the worker changes in Triton's interpreter and in torch, beside bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from triton.runtime import interpreter


def repair_index() -> None:
    """Let a runtime loop bound be an index under numpy 2.4, for Triton 3.6.

    A scalar is an array of one element there, and numpy 2.4 takes only those of no dimension.
    """
    patch: Callable[..., None] = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda value: int(value.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_repair


def poison_empty() -> None:
    """Fill new floating tensors with NaN: an element that no kernel wrote shows in the result."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        tensor = allocate(*arguments, **options)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return allocate_poisoned
