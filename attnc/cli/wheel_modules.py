"""What a wheel holds of every variant: forward and backward, each with binaries for any strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.module_cache import store_module
from attnc.autotune.package import PackagedModule
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, CompileFailure
from attnc.cli.fit import Fitted
from attnc.codegen.kernel_spec import KernelSpec
from attnc.codegen.plan import Plan, Request
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.gradient_launch import gradient_tensors, wanted_names
from attnc.codegen.text.launch import used_tensors
from attnc.codegen.text.render import render_launcher
from attnc.dsl.convolution import Convolution
from attnc.dsl.variant import Variant

if TYPE_CHECKING:
    from attnc.cli.build import Order

Kernels = tuple[tuple[KernelSpec, Compiled], ...]


def wheel_requests(variants: Sequence[Variant], order: Order) -> list[Request]:
    """Forward and backward of every variant; the declared tensors' gradients are apart.

    With `stateful`, what takes and returns a state comes beside what does not.
    """
    found = []
    for variant in variants:
        grads = tuple(t.name for t in (*variant.params, *variant.inputs) if t.grad)
        for facts in order.facts(variant):
            # a filter keeps no state
            stateful = facts.stateful and not isinstance(variant, Convolution)
            states = (False, True) if stateful else (False,)
            for stateful in states:
                whole = replace(facts, stateful=stateful, backward=False)
                base = whole.request(variant)
                found.append(base)
                found.append(replace(base, phase="backward", wanted=()))
                if grads:
                    found.append(replace(base, phase="backward", wanted=grads))
    return found


def compile_general(
    built: Sequence[Fitted], *, jobs: int, progress: Callable[[int, int], None]
) -> list[Kernels]:
    """The kernels of each plan again, for any alignment and any strides.

    Raises: CompileError where the compiler fails on one.
    """
    specs = [kernel_specs(item.plan, general=True) for item in built]
    work = [
        CompileJob(
            store_module(item.source, f"{item.plan.variant.name}_{item.plan.form}"),
            spec,
            Target.parse(item.plan.device.target),
        )
        for item, mine in zip(built, specs, strict=True)
        for spec in mine
    ]
    with CompilePool(jobs) as pool:
        verdicts = iter(pool.map(work, progress))
    found: list[Kernels] = []
    for mine in specs:
        kernels = []
        for spec in mine:
            verdict = next(verdicts)
            if isinstance(verdict, CompileFailure):
                raise verdict.error()
            kernels.append((spec, verdict))
        found.append(tuple(kernels))
    return found


def wheel_module(
    request: Request, plan: Plan, module: PackagedModule, general: Kernels
) -> PackagedModule:
    """A module of a package as one that a wheel runs by itself."""
    facts: list[tuple[str, Any]] = [*module.facts]
    name = module.name
    if plan.phase == "forward":
        facts.append(("tensors", list(_taken(plan))))
    else:
        wanted = list(request.wanted or ())
        name = "_".join([name, *wanted])
        facts += [
            ("tensors", list(_taken(plan))),
            ("wanted", list(wanted_names(plan))),
            ("gradients", wanted),
        ]
    if plan.stateful:
        facts += _state(plan)
    return replace(
        module, name=name, facts=tuple(facts), launcher=render_launcher(plan), general=general
    )


def _taken(plan: Plan) -> tuple[str, ...]:
    """The declared tensors that a launcher takes, in declared order."""
    if isinstance(plan.variant, Convolution):
        # a filter's launcher takes what is declared, and makes of it what its kernels read
        declared = (*plan.variant.params, *plan.variant.inputs)
        return tuple(tensor.name for tensor in declared if tensor.name in plan.variant.used)
    return used_tensors(plan) if plan.phase == "forward" else gradient_tensors(plan)


def _state(plan: Plan) -> list[tuple[str, Any]]:
    assert plan.features is not None, "a state has features"
    summed = plan.algebra.normalize == "sum"
    return [
        ("state_heads", "query" if plan.algebra.heads_differ else "kv"),
        ("state_rows", plan.features.count),
        ("state_columns", plan.dims[1] + (1 if summed else 0)),
    ]
