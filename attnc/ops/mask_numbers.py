"""The numbers that a mask reads, seen on a CPU; on a GPU looking would wait for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnc.dsl.variant import Variant
from attnc.errors import InputError

# kernels compare fp32 numbers, which are whole and apart from their neighbours up to here
MOST = 2**24


def check_numbers(variant: Variant, given: Mapping[str, torch.Tensor | float]) -> None:
    """Refuse numbers that kernels would compare as others; `given` as the call has them.

    Raises:
        InputError: a bound or a document's number that is not whole, or documents past 2**24.
    """
    bounds = tuple(bound[0] for bound in variant.mask_form.bounds)
    for name in (*variant.documents, *bounds):
        value = given[name]
        numbers = torch.as_tensor(value).detach().double()
        odd = numbers.isnan() | (numbers.isfinite() & (numbers != numbers.floor()))
        if bool(odd.any()):
            raise InputError(
                f"{name!r} holds {numbers[odd].flatten()[0].item():g}, no whole number",
                notes=("a mask of positions and of documents compares whole numbers",),
                hints=(f"pass {name}.floor(), or {name}.ceil()",),
            )
        if name in variant.documents and bool((numbers.abs() > MOST).any()):
            raise InputError(
                f"{name!r} numbers documents past 2**24, where kernels take neighbours for one",
                notes=("they compare numbers in fp32, which has no other whole numbers there",),
                hints=(f"pass {name}.unique(return_inverse=True)[1]: what counts is who is alike",),
            )
