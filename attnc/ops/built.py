"""A plan that is ready to run: its emitted module, and the first launch that settles which plan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.autotune.binary_kernel import load_launcher
from attnc.autotune.first_call import compile_passes
from attnc.autotune.launcher import Driver, LaunchError
from attnc.autotune.module_cache import load_module, store_module
from attnc.autotune.native_build import native_launcher
from attnc.autotune.triton_here import require_triton
from attnc.codegen.device import Device
from attnc.codegen.plan import Plan
from attnc.codegen.text.constants import constant
from attnc.codegen.text.launch import box_sides
from attnc.codegen.text.render import kernel_symbol, render, render_launcher
from attnc.codegen.wide_rows import UNIT, whole_places
from attnc.errors import PlanError
from attnc.ops.descriptors import describing, odd_layout, undescribable
from attnc.ops.seen_calls import run_on


@dataclass(frozen=True, slots=True)
class Key:
    """What tells one emitted module of a variant from another."""

    dims: tuple[int, int]
    dtype: str
    form: str | None
    stateful: bool
    precision: str
    device: Device
    phase: str = "forward"
    wanted: tuple[str, ...] = ()
    tensors: tuple[torch.dtype, ...] = ()
    backend: str = "triton"
    # what a call's own shape chose where no form was asked for
    form_chosen: str = ""
    deterministic: bool = True


@dataclass(slots=True)
class Built:
    """The plans of one key and the one in use; `path` is its emitted module.

    `run` is the module's launcher, once a first launch on a GPU has settled the plan. `otherwise`
    runs calls whose tensors the copy engine cannot read, where the planner chose gluon.
    """

    plans: Sequence[Plan]
    rank: int
    path: Path
    run: Callable[..., Any] | None = None
    otherwise: Built | None = None

    @property
    def plan(self) -> Plan:
        return self.plans[self.rank]

    def taking(self, *qkv: torch.Tensor) -> Built:
        """The one that takes these tensors as they lie: itself, or what there is otherwise."""
        return self._taking(any(map(undescribable, qkv)))

    def taking_like(self, *qkv: torch.Tensor) -> Built:
        """The one for all calls whose tensors have these strides: its launcher sees addresses."""
        return self._taking(any(map(odd_layout, qkv)))

    def _taking(self, odd: bool) -> Built:
        if self.otherwise is None or self.plan.backend != "gluon":
            return self
        return self.otherwise if odd else self


def _say(text: str) -> None:
    """One line on standard error: a first call that takes seconds says what it does."""
    sys.stderr.write(f"attnc: {text}\n")


@cache
def _native() -> ModuleType | None:
    """The launcher in C, and word of why there is none."""
    found = native_launcher()
    if found.module is None:
        _say(f"launching by ctypes, some microseconds slower: {found.why_not}")
    return found.module


def store_plan(plan: Plan) -> Path:
    """Emit a plan into the cache of modules; the file it stands in."""
    return store_module(render(plan), f"{plan.variant.name}_{plan.form}_{plan.phase}")


def launch(
    built: Built, q: torch.Tensor, arguments: list[torch.Tensor], *, written: Sequence[int] = ()
) -> list[torch.Tensor]:
    """Run the launcher of a built plan on tensors of q's device; always a list of tensors.

    `written` are the places of the arguments that the kernels write to.
    """
    built = built.taking(*arguments[:3])
    phase = built.plan.phase
    if q.device.type == "cpu":
        # a CUDA call needs no interpreter
        from attnc.autotune.interpreter import run_interpreted

        def run(*tensors: torch.Tensor) -> Any:
            return run_interpreted(built.path, phase, tensors, {}, written=written)

        result = (describing(run) if built.plan.backend == "gluon" else run)(*arguments)
    elif built.run is not None:
        result = run_on(q.device, built.run, arguments)
    else:
        result = first_launch(built, q, arguments)
    return list(result) if isinstance(result, tuple | list) else [result]


def fast_launcher(
    plan: Plan, module: ModuleType, otherwise: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The launcher of a loaded plan, its kernels ones that remember their dispatch on CUDA.

    `otherwise` launches what has no descriptors.
    """
    from attnc.autotune.fast_kernel import DescribedKernel, FastKernel

    own: Callable[..., Any] = getattr(module, plan.phase)
    try:
        driver = Driver(native=_native())
    except LaunchError:
        # AMD's devices have another driver: there the module launches as it was emitted
        return describing(own, otherwise) if plan.backend == "gluon" else own
    kernels: dict[str, FastKernel] = {}
    for step in plan.passes:
        symbol = kernel_symbol(plan, step.kernel)
        kernel = getattr(module, symbol)
        if step.described:
            boxes = [box_sides(t, step.tile) if t.box else None for t in step.kernel.tensors]
            kernels[symbol] = DescribedKernel(kernel, step.options, driver, boxes, module.tiled)
            continue
        constants = {name: constant(plan, step, name) for name in step.kernel.constants}
        options = {"num_warps": step.num_warps, "num_stages": step.num_stages}
        places = whole_places(step.kernel)
        kernels[symbol] = FastKernel(kernel, {**constants, **options}, driver, (UNIT, places))
    text = render_launcher(plan)
    run: Callable[..., Any] = load_launcher(
        text.encode(), f"{module.__file__}: launcher", "attnc.autotune", kernels
    )[plan.phase]
    return describing(run, otherwise) if plan.backend == "gluon" else run


def _otherwise(built: Built) -> Callable[..., Any] | None:
    behind = built.otherwise
    if behind is None:
        return None
    return lambda *tensors: launch(behind, tensors[0], list(tensors))


def first_launch(built: Built, q: torch.Tensor, arguments: list[torch.Tensor]) -> Any:
    """Compile on this device; a plan that the compiler refuses gives way to the next."""
    require_triton("compiling kernels")
    from triton.runtime.errors import OutOfResources

    for rank in range(built.rank, len(built.plans)):
        plan = built.plans[rank]
        path = store_plan(plan)
        _say(
            f"compiling {plan.variant.name} {plan.phase} ({plan.form}, {plan.dtype}, "
            f"K={plan.dims[0]} V={plan.dims[1]}) for {torch.cuda.get_device_name(q.device)}"
        )
        module = load_module(path)
        try:
            if len(plan.passes) > 1:
                compile_passes(module, plan.phase, arguments, q.device)
            run = fast_launcher(plan, module, _otherwise(built))
            with torch.cuda.device(q.device):
                result = run(*arguments)
        except OutOfResources as error:
            _say(f"the compiler refuses that plan: {error}")
            continue
        built.rank, built.path, built.run = rank, path, run
        return result
    raise PlanError(
        f"the compiler refuses all {len(built.plans)} plans of {built.plan.variant.name!r} on "
        f"{torch.cuda.get_device_name(q.device)}",
        hints=("use a smaller head dim, or a 16-bit dtype",),
    )
