"""The constants of a kernel: their values, and what a launcher hands over for them."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.codegen.plan import PassPlan, Plan
from attnc.codegen.wide_rows import UNIT, row_unit


def constant_texts(plan: Plan, step: PassPlan, names: Sequence[str]) -> list[str]:
    """What a launcher hands over as the constants of a kernel, whose tensors it has as `names`."""
    kernel = step.kernel
    pairs = zip(kernel.tensors, names, strict=True)
    told = [name for tensor, name in pairs if set(tensor.strides) & set(kernel.whole_rows)]
    return [
        f"{UNIT}=row_unit({', '.join(told)})"
        if name == UNIT
        else f"{name}={constant(plan, step, name)}"
        for name in kernel.constants
    ]


def constant(plan: Plan, step: PassPlan, name: str) -> int:
    """The value of one constexpr of a kernel."""
    head_dim, value_dim = plan.dims
    fixed = {
        "K": head_dim,
        "V": value_dim,
        "MC": plan.min_chunks,
        UNIT: row_unit(plan.dims, plan.dtype),
    }
    if plan.features is not None:
        fixed["F"] = plan.features.count
        fixed["FP"] = plan.features.padded_count
    return fixed[name] if name in fixed else step.tile[name]
