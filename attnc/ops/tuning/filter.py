"""What a candidate of a convolution is launched with, and what it has to give.

The expected numbers are the formula's in fp64, its sums by transforms, some channels at a time:
direct sums of long filters would take longer than all that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.plan import Plan
from attnc.codegen.text.gradient_launch import wanted_names
from attnc.dsl.convolution import Convolution
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.reference.convolution import convolution_gradients, convolve
from attnc.ops.tuning.inputs import allowed
from attnc.ops.verification.convolution import FilterShape, draw_filter

# elements of v whose formula is evaluated at once: fp64 transforms are 30 times as large
_AT_ONCE = 1 << 25

Named = dict[str, Tensor]


def filter_facts(
    op: ConvolutionOp, plan: Plan, shape: FilterShape, dtype: torch.dtype,
    generator: torch.Generator, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Arguments, expected outputs and bounds of one launch of a plan's phase."""
    v, tensors = draw_filter(op.variant, shape, dtype, generator, device)
    # the kernels are handed taps that are used as they come
    variant = op.variant.untransformed
    used = [tensors[name] for name in op.tensor_names if name in variant.used]
    run: Callable[..., Named]
    if plan.phase == "forward":
        arguments, names, factor = [v, *used], ["o"], 1

        def run(given: Named, **options: Any) -> Named:
            return {"o": convolve(variant, given.pop("v"), given, by_fft=True, **options)}

    else:
        incoming = torch.randn(v.shape, generator=generator).to(v)
        arguments, names, factor = [v, *used, incoming], ["v", *wanted_names(plan)], 4
        tensors = {**tensors, "do": incoming}

        def run(given: Named, **options: Any) -> Named:
            out, tokens = given.pop("do"), given.pop("v")
            return convolution_gradients(variant, tokens, given, out, by_fft=True, **options)

    everything = {"v": v, **tensors}
    wide = _by_channels(variant, everything, names, run)
    narrow = _by_channels(
        variant, everything, names, lambda given: run(given, dtype=torch.float32, rounding=dtype)
    )
    return {
        "arguments": arguments,
        "expected": [wide[name].float() for name in names],
        "bounds": [factor * allowed(wide[name], narrow[name], dtype) for name in names],
    }


def _by_channels(
    variant: Convolution, tensors: Named, names: list[str], run: Callable[[Named], Named]
) -> Named:
    """What a function of named tensors gives, its channels one part after the other."""
    axes = {t.name: t.shape for t in (*variant.params, *variant.inputs)}
    axes |= dict.fromkeys(("v", "o", "do"), ("b", "t", "c"))
    batch, tokens, channels = tensors["v"].shape
    # learned factors are shared by all channels, and their sequences are short
    step = channels if variant.filter.learned else max(1, _AT_ONCE // (batch * tokens))
    parts = []
    for start in range(0, channels, step):
        width = min(step, channels - start)
        given = {
            name: x.narrow(axes[name].index("c"), start, width) if "c" in axes[name] else x
            for name, x in tensors.items()
        }
        parts.append(run(given))
    if len(parts) == 1:
        return {name: parts[0][name] for name in names}
    return {name: torch.cat([x[name] for x in parts], axes[name].index("c")) for name in names}
