"""Which requests a dtype has kernels for."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.dsl.scale_names import SCALED_DTYPE
from attnc.errors import InputError, PlanError

OUT_DTYPES = ("bf16", "fp16", "fp32")
# fp64 is the interpreter's alone
DTYPES = (*OUT_DTYPES, "fp64", SCALED_DTYPE)


def check_dtype_name(name: str, known: Iterable[str] = DTYPES) -> None:
    """Refuse what is no dtype of kernels, or of those known.

    Raises:
        InputError: a name that is not known.
    """
    names = tuple(known)
    if name not in names:
        raise InputError(
            f"unknown dtype {name!r}",
            notes=(f"the known ones are {', '.join(names)}",),
            hints=("a dtype goes by its short name: torch.bfloat16 is 'bf16'",),
        )


def check_dtype(request: Request) -> None:
    """Refuse 8-bit tensors where there is no kernel for them, and an output of another type.

    Raises:
        PlanError: what has no such kernel, and what has.
    """
    if request.dtype != SCALED_DTYPE:
        return
    name, device = request.variant.name, request.device
    if request.phase != "forward":
        raise PlanError(
            f"{name!r} has no {request.phase} in {SCALED_DTYPE}",
            notes=("8-bit tensors have the forward of the softmax family alone",),
            hints=("convert q, k and v to bf16, and multiply them by their scales",),
        )
    if not device.byte_products:
        able = ", ".join(known.name for known in DEVICES.values() if known.byte_products)
        raise PlanError(
            f"{device.name} ({device.target}) multiplies no {SCALED_DTYPE} tensors",
            notes=(f"these do: {able}",),
            hints=("convert q, k and v to bf16, and multiply them by their scales",),
        )
    if request.result not in OUT_DTYPES:
        raise PlanError(
            f"no kernel of {SCALED_DTYPE} tensors writes {request.result}",
            notes=(f"they write {', '.join(OUT_DTYPES)}",),
        )
    assert request.variant.scaled, "8-bit tensors come with scales"
