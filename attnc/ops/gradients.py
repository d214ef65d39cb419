"""Which calls need a backward, and what may ask for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnc.dsl.variant import Variant
from attnc.errors import InputError


def needs_gradient(*tensors: torch.Tensor | float | None) -> bool:
    """Whether autograd will want a backward of these inputs."""
    if not torch.is_grad_enabled():
        return False
    return any(getattr(tensor, "requires_grad", False) for tensor in tensors)


def check_gradients(variant: Variant, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse a tensor that requires grad and was not declared to have one.

    Raises:
        InputError: with the declaration that it needs.
    """
    for declared in (*variant.params, *variant.inputs):
        if given[declared.name].requires_grad and not declared.grad:
            shape = ", ".join(f'"{letter}"' for letter in declared.shape)
            raise InputError(
                f"{declared.kind} {declared.name!r} of {variant.name!r} requires grad, and is "
                "declared without",
                notes=("a gradient that nobody asked for costs time at every step",),
                hints=(
                    f"declare {declared.kind}s.{declared.name} = "
                    f"{{ shape = [{shape}], grad = true }}, or detach the tensor",
                ),
            )


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under torch.autocast, fp32 tensors in autocast's dtype, as its matrix products take them."""
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        return tensors  # the check of the inputs says which one is not
    kind = tensors[0].device.type
    if kind not in {"cpu", "cuda"} or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype == torch.float32 else t for t in tensors)


def rows_adjacent(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient with adjacent channels: `sum().backward()` hands over one number, expanded."""
    return gradient if gradient.stride(-1) == 1 else gradient.contiguous()
