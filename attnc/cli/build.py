"""`attnc build`: a package of sources, binaries and a manifest, compiled with no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from attnc.autotune.native_build import Native, native_launcher
from attnc.autotune.package import PackagedModule, write_package
from attnc.cli.facts import Facts
from attnc.cli.find import find_all
from attnc.cli.fit import Fitted, fit_plans
from attnc.cli.plan_view import gap_text, spilled_bytes
from attnc.cli.progress import Waiting
from attnc.cli.screen import console, table
from attnc.cli.status import OK
from attnc.cli.targets import device_of_target
from attnc.cli.wheel_modules import compile_general, wheel_module, wheel_requests
from attnc.codegen.convolution.launch import most_tokens
from attnc.codegen.plan import Plan
from attnc.codegen.planning.choice import choice_of
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.gradient_launch import wanted_names
from attnc.dsl.convolution import Convolution
from attnc.dsl.scale_names import SCALED_DTYPE
from attnc.dsl.variant import Variant
from attnc.errors import UsageError
from attnc.ops.tuning.tuned import tuned_first

# what a convolution's forms are compared at
_BATCH, _TOKENS, _CHANNELS = 4, 4096, 1024


@dataclass(frozen=True, slots=True)
class Order:
    """What every variant is built for: all targets, dims and dtypes with each other.

    `tokens` are lengths that convolutions are planned for, in place of dims.
    """

    targets: tuple[str, ...]
    dims: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    heads: str | None = None
    stateful: bool = False
    backward: bool = False
    wheel: str | None = None
    backend: str | None = None
    decode: bool = False
    cache: str | None = None
    any_platform: bool = False
    tokens: tuple[int, ...] = ()

    def facts(self, variant: Variant | None = None) -> list[Facts]:
        """The facts of each module to build; of a convolution one for each length, not for dims."""
        # a target is named as the planner names it, or refused, before anything is planned
        targets = [device_of_target(name).target for name in self.targets]
        sizes: tuple[tuple[str | None, str | None], ...]
        heads = self.heads
        if isinstance(variant, Convolution):
            lengths = self.tokens or (_TOKENS,)
            sizes = tuple((None, f"{_BATCH},{tokens}") for tokens in lengths)
            heads = heads or str(_CHANNELS)
        else:
            sizes = tuple((dim, None) for dim in self.dims or (None,))
        choices = product(targets, sizes, self.dtypes or ("bf16",))
        facts = [
            Facts(
                target,
                dtype,
                dim,
                heads,
                shape=shape,
                stateful=self.stateful,
                backward=self.backward,
                backend=self.backend,
                decode=self.decode,
                cache=self.cache,
                launcher="packaged",
            )
            for target, (dim, shape), dtype in choices
        ]
        return list(dict.fromkeys(facts))


def build(names: Sequence[str], order: Order, folder: Path, *, jobs: int) -> int:
    """Plan, emit and compile everything, write the package, and print what the compiler said."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, and a package is a folder")
    variants = find_all(names)
    if order.tokens and not any(isinstance(variant, Convolution) for variant in variants):
        raise UsageError(
            "--tokens is for convolutions, whose forms differ from length to length",
            notes=(f"none here: {', '.join(variant.name for variant in variants)}",),
        )
    if order.dims and all(isinstance(variant, Convolution) for variant in variants):
        raise UsageError(
            "--dim is for head dims, and convolutions have none",
            hints=("leave --dim out; --tokens N says which lengths to plan for",),
        )
    if order.any_platform and order.wheel is None:
        raise UsageError("--any-platform is for a wheel", hints=("add --wheel NAME",))
    if order.wheel is not None:
        return _build_wheel(variants, order, order.wheel, folder, jobs=jobs)
    ranked = [_ranked(variant, facts) for variant in variants for facts in order.facts(variant)]
    ranked = list({module_name(plans[0]): plans for plans in ranked}.values())
    with Waiting("compiling") as waiting:
        built = fit_plans(ranked, jobs=jobs, progress=waiting.update)
    try:
        manifest = write_package(folder, [_packaged(item) for item in built])
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    _print(built, manifest)
    return OK


def _build_wheel(
    variants: Sequence[Variant], order: Order, name: str, folder: Path, *, jobs: int
) -> int:
    from attnc.ops.wheel import check_name, write_wheel

    check_name(name)
    if order.backend == "gluon":
        raise UsageError(
            "a wheel cannot launch gluon kernels: their tensors go as descriptors",
            hints=("leave --backend out; or leave --wheel out: a folder holds their binaries",),
        )
    if SCALED_DTYPE in order.dtypes:
        raise UsageError(
            f"a wheel holds no {SCALED_DTYPE} modules yet: its ops take no scales",
            hints=("leave --wheel out: the folder holds their binaries",),
        )
    if order.decode:
        raise UsageError(
            "a wheel holds no decode step yet",
            hints=("leave --wheel out: the folder holds the step's binaries",),
        )
    requests = wheel_requests(variants, order)
    for request in requests:
        if not request.device.target.startswith("cuda:"):
            raise UsageError(
                f"a wheel launches through the CUDA driver, and {request.device.target} has none",
                hints=("leave --wheel out: the folder holds binaries for any target",),
            )
    with Waiting("compiling") as waiting:
        ranked = [tuned_first(plans(request)) for request in requests]
        built = fit_plans(ranked, jobs=jobs, progress=waiting.update)
        general = compile_general(built, jobs=jobs, progress=waiting.update)
    modules = [
        wheel_module(request, item.plan, _packaged(item), spare)
        for request, item, spare in zip(requests, built, general, strict=True)
    ]
    native = Native(why_not="--any-platform") if order.any_platform else native_launcher()
    if native.why_not and not order.any_platform:
        console().print(f"no launcher in C: {native.why_not}; the wheel launches by ctypes")
    try:
        path = write_wheel(folder, name, modules, variants, native)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    _print(built, path)
    console().print(f"pip install {path}", soft_wrap=True)
    return OK


def module_name(plan: Plan) -> str:
    """The file of a module: what it was planned for, but not how."""
    filtered = isinstance(plan.variant, Convolution)
    dims = f"t{plan.workload.tk}" if filtered else f"{plan.dims[0]}x{plan.dims[1]}"
    target = plan.device.target.replace(":", "")
    backend = "" if plan.backend == "triton" else f"_{plan.backend}"
    stateful = "_stateful" if plan.stateful else ""
    phase = "" if plan.phase == "forward" else f"_{plan.phase}"
    cache = f"_{plan.cache}" if plan.cache else ""
    return f"{plan.variant.name}_{plan.dtype}_{dims}{stateful}{phase}{cache}{backend}_{target}"


def _ranked(variant: Variant, facts: Facts) -> tuple[Plan, ...]:
    return tuned_first(plans(facts.request(variant)))


def _packaged(item: Fitted) -> PackagedModule:
    plan = item.plan
    facts: tuple[tuple[str, Any], ...] = (
        ("target", plan.device.target),
        ("device", plan.device.name),
        ("phase", plan.phase),
        ("backend", plan.backend),
        ("backend_reason", plan.backend_reason),
        ("form", plan.form),
        ("dtype", plan.dtype),
        ("qk", plan.dims[0]),
        ("v", plan.dims[1]),
        ("stateful", plan.stateful),
        ("plan_digest", plan.digest),
        ("choice", list(choice_of(plan))),
        ("predicted_sram_bytes", plan.sram_bytes),
        ("sram_budget_bytes", plan.device.sram_bytes),
    )
    if isinstance(plan.variant, Convolution):
        tile = plan.passes[0].tile
        facts += (
            ("tokens", plan.workload.tk),
            ("most_tokens", most_tokens(plan)),
            ("factors", [tile["N1"], tile["N2"]] if plan.variant.filter.learned else None),
        )
    name = plan.variant.name
    return PackagedModule(
        module_name(plan), item.source, plan.variant.digest, item.kernels, facts, name
    )


def _size(plan: Plan) -> str:
    if isinstance(plan.variant, Convolution):
        return f"{plan.workload.tk:,}"
    return f"{plan.dims[0]},{plan.dims[1]}"


def _declared(plan: Plan) -> str:
    """What gradients are of beside q, k and v: a wheel has a backward with, and one without."""
    if plan.derivation is None or isinstance(plan.variant, Convolution):
        return ""
    return "".join(f" +{name}" for name in wanted_names(plan))


def _print(built: Sequence[Fitted], manifest: Path) -> None:
    figures = ("shared B", "gap", "regs", "spilled B")
    rows = table("kernel", "target", "dtype", "K,V or T", figures=figures)
    for item in built:
        plan = item.plan
        for step, compiled in zip(plan.passes, item.compiled, strict=True):
            spilled = spilled_bytes(compiled)
            rows.add_row(
                compiled.kernel + _declared(plan),
                str(compiled.target),
                plan.dtype,
                _size(plan),
                f"{compiled.shared_bytes:,}",
                gap_text(step.cost.sram_bytes, compiled.shared_bytes),
                str(compiled.registers),
                f"{spilled:,}",
                style="yellow" if spilled else "",
            )
    screen = console()
    screen.print(rows)
    for item in built:
        for refused in item.refused:
            target = item.plan.device.target
            text = f"{item.plan.variant.name}, {target}: not {refused.candidate}: {refused.reason}"
            screen.print(text, soft_wrap=True)
    kernels = sum(len(item.kernels) for item in built)
    screen.print(f"modules {len(built)}, kernels {kernels}, in {manifest}", soft_wrap=True)
