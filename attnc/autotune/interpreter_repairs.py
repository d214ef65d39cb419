"""What the worker changes in Triton's interpreter and in torch, beside bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
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


class _Results:
    """What an inline instruction gives, as the compiler's builder hands it over."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def get_result(self, place: int) -> Any:
        assert place == 0, "one result an instruction"
        return self._handle


def approximate_tanh(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What tanh.approx.f32 gives: off by 2**-11 at most (PTX ISA)."""
    bits = np.tanh(values.astype(np.float32)).view(np.uint32)
    # to the nearest of 10 bits behind the point
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def know_tanh() -> None:
    """Let the interpreter run tanh.approx.f32, with the error it has."""

    def create_inline_asm(
        builder: Any, text: str, constraints: str, values: Any, *types_and_options: Any
    ) -> _Results:
        if not text.startswith("tanh.approx.f32"):
            raise NotImplementedError(f"the interpreter does not know {text!r}")
        rounded = approximate_tanh(values[0].data)
        return _Results(interpreter.TensorHandle(rounded, values[0].dtype))

    interpreter.InterpreterBuilder.create_inline_asm = create_inline_asm


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
