"""Plan -> what the compiler is told about each kernel when there are no tensors to look at."""

from __future__ import annotations

from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernel_spec import Argument, KernelSpec
from attnc.codegen.plan import PassPlan, Plan, item_bytes
from attnc.codegen.text.constants import constant
from attnc.codegen.text.launch import box_sides
from attnc.codegen.wide_rows import UNIT, row_unit

# how the emitted launcher lays tiles out, as Triton spells it
_SWIZZLED = (
    "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth={}, rank=4, transposed=False, "
    "fp4_padded=False, cga_layout=[])"
)

# dtypes whose pointers Triton spells otherwise
_POINTERS = {"e4m3": "fp8e4nv"}


def kernel_specs(plan: Plan, *, general: bool = False) -> tuple[KernelSpec, ...]:
    """One spec a pass, in order of the passes.

    q, k, v and o are taken to be aligned to 16 bytes, their rows too, and their channels to be
    adjacent; declared tensors are fp32 with any strides. A `general` spec takes nothing for
    granted: any alignment, any strides.
    """
    return tuple(_spec(plan, step, general=general) for step in plan.passes)


def _spec(plan: Plan, step: PassPlan, *, general: bool) -> KernelSpec:
    kernel = step.kernel
    arguments = [_pointer(plan, step, tensor, general=general) for tensor in kernel.tensors]
    for tensor in kernel.tensors:
        if general:
            arguments.extend(Argument(name, "i64") for name in tensor.strides)
        else:
            arguments.extend(_strides(plan, step, tensor))
    arguments.extend(
        Argument(name, "i32", divisible16=name in kernel.specialized and not general)
        for name in kernel.scalars
    )
    arguments.extend(
        # strides of any kind are multiples of 1
        Argument(name, "constexpr", value=1 if general and name == UNIT else value)
        for name, value in ((name, constant(plan, step, name)) for name in kernel.constants)
    )
    symbol = f"{plan.variant.name}_{kernel.name}"
    options = step.options
    return KernelSpec(
        symbol, tuple(arguments), options["num_warps"], step.num_stages, options.get("maxnreg")
    )


def _pointer(plan: Plan, step: PassPlan, tensor: TensorArgument, *, general: bool) -> Argument:
    if tensor.box is None:
        return Argument(tensor.name, f"*{_type(plan, tensor)}", divisible16=not general)
    rows, columns = box_sides(tensor, step.tile)
    layout = _SWIZZLED.format(8 * item_bytes(tensor.dtype, plan.dtype))
    return Argument(
        tensor.name, f"tensordesc<{_type(plan, tensor)}[1,1,{rows},{columns}],{layout}>"
    )


def _strides(plan: Plan, step: PassPlan, tensor: TensorArgument) -> list[Argument]:
    # a state that a step keeps lies as init_state makes it; one that is handed over may not
    kept = plan.decode and tensor.dtype == "acc"
    if not tensor.axes or (tensor.dtype != "io" and not kept):
        return [Argument(name, "i32") for name in tensor.strides]
    if tensor.axes[-1] == "c":
        # tokens are adjacent, and a channel's lie in a row of their own
        return [Argument(name, "i32", divisible16=True) for name in tensor.strides]
    *outer, inner = tensor.strides
    count = 0 if plan.features is None else plan.features.count
    dim = {"v": plan.dims[1], "f": count}.get(tensor.axes[-1], plan.dims[0])
    whole = row_unit(plan.dims, plan.dtype) if set(outer) & set(step.kernel.whole_rows) else 1
    rows = [Argument(name, "i32", divisible16=dim % 16 == 0, multiple=whole) for name in outer]
    return [*rows, Argument(inner, "constexpr", value=1)]


def _type(plan: Plan, tensor: TensorArgument) -> str:
    types = {"io": plan.dtype, "acc": plan.acc, "tensor": "fp32"}
    dtype = types.get(tensor.dtype, tensor.dtype)
    return _POINTERS.get(dtype, dtype)
