"""8-bit tensors with a scale a head: what a call of them has to look like, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnc.codegen.dtype import OUT_DTYPES
from attnc.codegen.plan import SCALED_OUT
from attnc.dsl.scale_names import SCALES
from attnc.dsl.scales import takes_scales
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.gradients import needs_gradient
from attnc.ops.inputs import DTYPE_NAMES

E4M3 = torch.float8_e4m3fn
_OUT_TYPES = {dtype: name for dtype, name in DTYPE_NAMES.items() if name in OUT_DTYPES}


def comes_scaled(q: torch.Tensor, variant: Variant) -> bool:
    """Whether a call of q is one of the variant over scales, which this one is not."""
    return getattr(q, "dtype", None) is E4M3 and not variant.scaled


def output_name(q: torch.Tensor, out_dtype: torch.dtype | None) -> str:
    """The short name of an output's type, empty for the usual one.

    Raises:
        InputError: a type that no kernel writes, or any where q is not of 8 bits.
    """
    if out_dtype is None:
        return ""
    if q.dtype is not E4M3:
        raise InputError(
            f"out_dtype is {out_dtype}, and q is {q.dtype}: the output has q's type",
            notes=(f"{E4M3} tensors alone give an output of another type",),
            hints=("leave out_dtype out, and convert the output",),
        )
    if out_dtype not in _OUT_TYPES:
        known = ", ".join(map(str, _OUT_TYPES))
        raise InputError(
            f"out_dtype is {out_dtype}; kernels of {E4M3} tensors write {known}",
            hints=("leave it out for torch.bfloat16",),
        )
    name = _OUT_TYPES[out_dtype]
    return "" if name == SCALED_OUT else name


def output_names(variant: Variant) -> tuple[str, ...]:
    """The types that kernels of the variant over scales write; none where there is no such."""
    if variant.scaled or not takes_scales(variant):
        return ()
    return tuple("" if name == SCALED_OUT else name for name in OUT_DTYPES)


def output_dtype(name: str) -> torch.dtype:
    """The type of an output by its short name, empty for the usual one."""
    return {known: dtype for dtype, known in _OUT_TYPES.items()}[name or SCALED_OUT]


def check_scaled(
    variant: Variant, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
) -> None:  # fmt: skip
    """Refuse tensors that are not of 8 bits, a gradient, and on a CPU a scale that is not positive.

    On a GPU such a scale gives NaN: to look at it here would wait for the device.

    Raises:
        InputError: which tensor it is, and what to do.
    """
    if q.dtype is not E4M3:
        raise InputError(
            f"q is {q.dtype}; scales come with {E4M3} tensors",
            hints=("multiply q, k and v by their scales, and leave those out",),
        )
    given = {"q": q, "k": k, "v": v, **tensors}
    for name, tensor in given.items():
        if needs_gradient(tensor):
            raise InputError(
                f"{variant.name!r} has no gradient in e4m3, and {name} requires one",
                notes=("8-bit tensors have the forward alone",),
                hints=(
                    "call it under torch.no_grad(), or train in bf16 with q, k and v multiplied "
                    "by their scales",
                ),
            )
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        for name in SCALES:
            smallest = float(tensors[name].min())
            if not smallest > 0:
                raise InputError(
                    f"{name} holds {smallest:g}: a scale has to be positive",
                    hints=("the largest magnitude of a head divided by 448 uses e4m3's range",),
                )
