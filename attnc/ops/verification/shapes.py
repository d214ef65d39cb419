"""The shapes and dtypes that a variant is verified in where none are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attnc.codegen.dtype import check_dtype_name
from attnc.dsl.convolution import Convolution
from attnc.dsl.scale_names import SCALED_DTYPE
from attnc.dsl.variant import Variant
from attnc.ops.scaled import E4M3
from attnc.ops.verification.convolution import filter_shapes
from attnc.ops.verification.draw import Shape

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# asked for by name: most variants have no kernels for them
SCALED = {SCALED_DTYPE: E4M3}
_DEFAULT_DIM = 64


def default_shapes(variant: Variant, device: torch.device) -> tuple[Shape, ...]:
    """Ragged lengths, TQ other than TK, grouped heads, head dims that are no powers of two."""
    if isinstance(variant, Convolution):
        return filter_shapes(variant, device)
    dim = variant.dim
    qk, v = (_DEFAULT_DIM, _DEFAULT_DIM) if dim is None else (dim.qk, dim.v)
    if device.type == "cpu":
        return (
            Shape(1, 200, 200, 2, 1, qk, v),
            Shape(2, 1, 1, 2, 2, qk, v),
            Shape(1, 63, 63, 4, 2, qk, v, strided=True),
            Shape(1, 37, 130, 2, 1, qk, v),
            Shape(1, 100, 37, 1, 1, qk, v),
            Shape(1, 63, 63, 1, 1, 80, 80),
        )
    return (
        # one token in many heads: the bound's rounding term is a maximum over random elements
        Shape(8, 1, 1, 16, 8, qk, v),
        *(Shape(1, t, t, 4, 2, qk, v) for t in (63, 1000, 4096, 16384)),
        Shape(2, 1000, 1000, 6, 2, qk, v, strided=True),
        Shape(1, 1, 4096, 4, 1, qk, v),
        Shape(1, 1000, 4096, 4, 2, qk, v),
        Shape(1, 4096, 1000, 4, 2, qk, v),
        Shape(2, 1000, 1000, 4, 4, 80, 80),
        Shape(1, 1000, 1000, 4, 4, 128, 128),
        Shape(1, 300, 300, 2, 1, 256, 256),
    )


def packed_shapes(variant: Variant, device: torch.device) -> tuple[Shape, ...]:
    """Sequences of any lengths in one call, one of them empty."""
    like = default_shapes(variant, device)[0]
    # the interpreter takes every form of them, with states and gradients
    tq, tk, hq = (50, 90, 2) if device.type == "cpu" else (4000, 6000, 4)
    shape = replace(like, batch=1, tq=tq, tk=tq, hq=hq, hkv=hq // 2, sequences=5)
    return shape, replace(shape, tk=tk)


def calls_of(
    variant: Variant,
    device: torch.device,
    dtypes: Sequence[str] | None,
    shapes: Sequence[Shape] | None,
) -> list[tuple[Shape, str]]:
    """The shapes, each with the dtype that it is verified in.

    Raises:
        InputError: a dtype that no kernels are made for.
    """
    for name in dtypes or ():
        check_dtype_name(name, (*DTYPES, *SCALED))
    listed = tuple(shapes) if shapes is not None else default_shapes(variant, device)
    if dtypes is None and shapes is None and device.type == "cpu":
        # the interpreter is slow: every shape in fp32, which is held tightest, 16-bit types once
        return [*((shape, "fp32") for shape in listed), (listed[0], "fp16"), (listed[0], "bf16")]
    return [(shape, name) for name in dtypes or tuple(DTYPES) for shape in listed]
