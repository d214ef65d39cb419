"""A variant whose q, k and v come as 8-bit floats, with a scale a head."""

from __future__ import annotations

from dataclasses import replace

from attnc.dsl.scale_names import SCALED_DTYPE, SCALES
from attnc.dsl.variant import Declared, Variant
from attnc.errors import InputError


def takes_scales(variant: Variant) -> bool:
    """Whether a variant has a kernel for 8-bit tensors."""
    return not _problem(variant)


def over_scales(variant: Variant) -> Variant:
    """The variant that takes q_scale [HQ], k_scale [HKV] and v_scale [HKV] beside its tensors.

    It attends with q * q_scale, k * k_scale and v * v_scale.

    Raises:
        InputError: a variant that has no kernel for 8-bit tensors; its text says why.
    """
    if variant.scaled:
        return variant
    problem = _problem(variant)
    if problem:
        raise InputError(
            f"{variant.name!r} takes no {SCALED_DTYPE} tensors: {problem}",
            hints=("convert q, k and v to bf16, and multiply them by their scales",),
        )
    given = tuple(Declared(name, (axis,), kind="input") for name, axis in SCALES.items())
    inputs = sorted((*variant.inputs, *given), key=lambda tensor: tensor.name)
    return _with(variant, tuple(inputs), scaled=True)


def unscaled_of(variant: Variant) -> Variant:
    """The variant of tensors that have been multiplied by their scales."""
    inputs = tuple(tensor for tensor in variant.inputs if tensor.name not in SCALES)
    return _with(variant, inputs, scaled=False)


def of_dtype(variant: Variant, dtype: str) -> Variant:
    """The variant as its kernels take tensors of a dtype: with scales where they are of 8 bits.

    Raises:
        InputError: a variant that has no kernel for 8-bit tensors.
    """
    return over_scales(variant) if dtype == SCALED_DTYPE else variant


def _with(variant: Variant, inputs: tuple[Declared, ...], *, scaled: bool) -> Variant:
    parts: dict[str, object] = {name: getattr(variant, name) for name in Variant.__slots__}
    parts["meaning"] = replace(variant.meaning, scaled=scaled, inputs=inputs)
    return type(variant).from_checked(parts)


def _problem(variant: Variant) -> str:
    if variant.terms:
        return "it is a sum of terms, and those have no such kernel yet"
    if variant.family != "softmax":
        return f"it belongs to the {variant.family} family, and softmax alone has such a kernel"
    if variant.value is not None:
        return "its value is made of v, and would have to be rounded to 8 bits again"
    for tensor in (*variant.params, *variant.inputs):
        if tensor.name in SCALES:
            return f"it declares a {tensor.kind} {tensor.name!r}, the name of a scale"
    return ""
