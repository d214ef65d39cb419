"""Tuning: the planner's plans, measured on the device, each output checked; the winner kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attnc
from attnc.autotune.measure import Bench, Shown, Trial, winner
from attnc.autotune.module_cache import store_module
from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.codegen.choice import Bucket, choice_of, kernel_key
from attnc.codegen.gradient_launch import gradient_tensors, wanted_names
from attnc.codegen.launch import used_tensors
from attnc.codegen.plan import Plan, Workload
from attnc.codegen.planner import plans
from attnc.codegen.rank import rank_us
from attnc.codegen.render import render
from attnc.errors import InputError
from attnc.ops.criterion import bound_of
from attnc.ops.draw import Inputs, Shape, draw_inputs
from attnc.ops.op import Op
from attnc.ops.placement import device_model, planner_device
from attnc.ops.reference import attend
from attnc.ops.reference_gradient import Incoming, reference_gradients
from attnc.ops.tuned import forget

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# that many are measured; `exhaustive` measures all
MOST = 10


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel to tune: a phase of an op at a shape in a dtype."""

    op: Op
    shape: Shape
    dtype: str
    phase: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: the answer, its plan and every trial; None where no candidate works."""

    job: Job
    answer: Tuned | None
    plan: Plan | None
    trials: tuple[Trial, ...]


def tune(
    op: Op,
    shapes: Sequence[Shape],
    *,
    dtypes: Sequence[str] = ("bf16",),
    phases: Sequence[str] = ("forward", "backward"),
    device: str = "cuda",
    budget_s: float = 60.0,
    exhaustive: bool = False,
    store: TuningStore | None = None,
    show: Callable[[Job, Sequence[Trial]], None] | None = None,
) -> list[Result]:
    """Tune an op for shapes, and keep the winners in the store that later calls read.

    Every job gets `budget_s` seconds; a candidate's output is held against the reference before
    its time counts. On `cpu` the interpreter is timed, which tells nothing about a GPU.

    Raises:
        InputError: a dtype or phase that there is none of.
    """
    for kind, given, known in (("dtype", dtypes, DTYPES), ("phase", phases, _PHASES)):
        for name in given:
            if name not in known:
                raise InputError(f"{name!r} is no {kind}; there are {', '.join(known)}")
    store = store or TuningStore()
    results = []
    for shape in shapes:
        for dtype in dtypes:
            for phase in phases:
                job = Job(op, shape, dtype, phase)
                shown: Shown | None = None
                if show is not None:
                    shown = lambda trials, job=job: show(job, trials)  # noqa: E731
                result = _tune(job, device, budget_s, exhaustive, shown)
                model = device_model(torch.device(device))
                if result.answer is not None:
                    store.record(model, [result.answer])
                    name = f"{result.answer.kernel}-{shape_name(shape)}"
                    store.keep_run(model, name, run_facts(result))
                results.append(result)
    forget()
    return results


_PHASES = {"forward": "", "backward": ""}


def _tune(job: Job, device: str, budget_s: float, exhaustive: bool, show: Shown | None) -> Result:
    until = time.monotonic() + budget_s
    ranked = _ranked(job, device)
    inputs = draw_inputs(
        job.op.variant, job.shape, DTYPES[job.dtype], torch.Generator().manual_seed(0),
        torch.device(device),
    )  # fmt: skip
    best = ranked[0]
    everything: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.pt"
        torch.save(_facts(job, best, inputs), file)
        with Bench(device, file) as bench:
            for candidates in _rounds(ranked, exhaustive):
                offered = [_with(best, place, plan) for place, plan in candidates]
                trials = {
                    choice_of(plan): _trial(job, plan, place)
                    for plan, (place, _) in zip(offered, candidates, strict=True)
                }
                bench.compile(list(trials.values()), job.phase)
                kept = _fitting(list(trials.values()), exhaustive)
                bench.time(kept, job.phase, until=until, show=show)
                everything += trials.values()
                first = winner(kept)
                if first is not None:
                    best = next(p for p in offered if "; ".join(choice_of(p)) == first.text)
    timed = [trial for trial in everything if trial.text == "; ".join(choice_of(best))]
    last = next((trial for trial in reversed(timed) if trial.samples and not trial.problem), None)
    if last is None:
        return Result(job, None, None, tuple(everything))
    return Result(job, _answer(job, best, last, everything), best, tuple(everything))


def _ranked(job: Job, device: str) -> tuple[Plan, ...]:
    shape = job.shape
    work = Workload(shape.batch, shape.tq, shape.tk, shape.hq, shape.hkv)
    form = "parallel" if job.op.variant.family == "state" and shape.tq != shape.tk else None
    wanted = tuple(d.name for d in (*job.op.variant.params, *job.op.variant.inputs) if d.grad)
    request = job.op.request(
        (shape.qk, shape.v), job.dtype, form, False, workload=work,
        device=planner_device(torch.device(device)),
    )  # fmt: skip
    return plans(replace(request, phase=job.phase, wanted=wanted))


def _rounds(ranked: Sequence[Plan], exhaustive: bool) -> list[list[tuple[int | None, Plan]]]:
    """What is measured together: whole plans forward, one pass after the other backward."""
    limit = len(ranked) if exhaustive else 2 * MOST
    if ranked[0].phase == "forward":
        return [[(None, plan) for plan in ranked[:limit]]]
    rounds: list[list[tuple[int | None, Plan]]] = []
    for place in range(len(ranked[0].passes)):
        distinct = {str(plan.passes[place]): plan for plan in reversed(ranked)}
        steps = [plan for plan in ranked if distinct.get(str(plan.passes[place])) is plan]
        if len(steps) > 1:
            rounds.append([(place, plan) for plan in steps[:limit]])
    return rounds or [[(None, ranked[0])]]


def _with(best: Plan, place: int | None, plan: Plan) -> Plan:
    if place is None:
        return plan
    passes = (*best.passes[:place], plan.passes[place], *best.passes[place + 1 :])
    return replace(best, passes=passes)


def _trial(job: Job, plan: Plan, place: int | None) -> Trial:
    name = f"tune_{plan.variant.name}_{plan.phase}"
    request = job.op.request(
        plan.dims, plan.dtype, plan.form, plan.stateful, workload=plan.workload, device=plan.device
    )
    predicted = sum(rank_us(step, request) for step in plan.passes)
    path = store_module(render(plan), name)
    # the passes of a forward share their tiles: the last one stands for all
    label = str(plan.passes[-1 if place is None else place])
    return Trial(path, "; ".join(choice_of(plan)), label, predicted, plan.sram_bytes)


def _fitting(trials: list[Trial], exhaustive: bool) -> list[Trial]:
    """At most ten that compile and do not spill; where all spill, those that do so least."""
    usable = [trial for trial in trials if not trial.problem]
    if exhaustive:
        return usable
    usable.sort(key=lambda trial: ((trial.spills or 0) > 0, trial.predicted_us))
    for trial in usable[MOST:]:
        trial.problem = "not measured: ten were predicted to be faster, or spill less"
    return usable[:MOST]


def _facts(job: Job, plan: Plan, inputs: Inputs) -> dict[str, Any]:
    """Arguments, expected outputs and bounds of one launch."""
    dtype = DTYPES[job.dtype]
    op = job.op
    forward = [*inputs.qkv, *(inputs.tensors[name] for name in used_tensors(plan))]
    ref = attend(op.variant, *inputs.qkv, inputs.tensors, return_lse=op.softmax)
    rounded = attend(op.variant, *inputs.qkv, inputs.tensors, dtype=torch.float32, rounding=dtype)
    if job.phase == "forward":
        expected = [ref.out.float()]
        bounds = [_allowed(ref.out, rounded.out, dtype)]
        if op.keeps_row_sums:
            # lse and sums of weights are held by the output that they normalise
            rows = (job.shape.batch, job.shape.hq, job.shape.tq)
            expected.append(torch.zeros(rows, device=inputs.q.device))
            bounds.append(float("inf"))
        return {"arguments": forward, "expected": expected, "bounds": bounds}
    generator = torch.Generator().manual_seed(1)
    out = torch.randn(ref.out.shape, generator=generator).to(inputs.q)
    incoming = Incoming(out)
    wide = reference_gradients(op.variant, *inputs.qkv, inputs.tensors, incoming)
    narrow = reference_gradients(
        op.variant, *inputs.qkv, inputs.tensors, incoming, dtype=torch.float32, rounding=dtype
    )
    names = ["q", "k", "v", *wanted_names(plan)]
    tensors = [inputs.tensors[name] for name in gradient_tensors(plan)]
    arguments: list[Tensor] = [*inputs.qkv, *tensors]
    if op.keeps_row_sums:
        given = [inputs.tensors[name] for name in op.tensor_names]
        form = None if job.shape.tq == job.shape.tk or op.softmax else "parallel"
        arguments += op.forward(*inputs.qkv, given, None, form, "fp32")[:2]
    arguments.append(out)
    if op.softmax:
        arguments.append(torch.zeros_like(arguments[-2]))
    return {
        "arguments": arguments,
        "expected": [wide[name].float() for name in names],
        "bounds": [4 * _allowed(wide[name], narrow[name], dtype) for name in names],
    }


def _allowed(ref: Tensor, pt: Tensor, dtype: torch.dtype) -> float:
    """The criterion's bound, with room for fp32's own rounding."""
    return bound_of(ref, pt, dtype) + 1e-4 * float(ref.abs().max())


def shape_name(shape: Shape) -> str:
    """A shape in a file's name."""
    sizes = (shape.batch, shape.tq, shape.tk, shape.hq, shape.hkv, shape.qk, shape.v)
    return "x".join(map(str, sizes))


def run_facts(result: Result) -> dict[str, Any]:
    """All that one run saw, as `attnc report` draws it."""
    plan, answer = result.plan, result.answer
    assert plan is not None and answer is not None
    buffers = [
        {"pass": step.kernel.name, "name": use.name, "bytes": use.nbytes * use.copies}
        for step in plan.passes
        for use in step.cost.buffers
    ]
    return {
        "variant": plan.variant.summary,
        "answer": asdict(answer),
        "shape": str(result.job.shape),
        "flops": sum(step.cost.flops for step in plan.passes),
        "hbm_bytes": sum(step.cost.hbm_bytes for step in plan.passes),
        "peak_tflops": plan.device.tflops,
        "peak_tbps": plan.device.tbps,
        "budget": plan.device.sram_bytes,
        "buffers": buffers,
        "source": render(plan),
        "trials": [
            {
                "label": trial.label,
                "predicted_us": trial.predicted_us,
                "footprint": trial.footprint,
                "spills": trial.spills,
                "ms": trial.ms if trial.samples and not trial.problem else None,
                "noise": trial.noise if trial.samples else None,
                "problem": trial.problem,
            }
            for trial in result.trials
        ],
    }


def _answer(job: Job, plan: Plan, trial: Trial, trials: Sequence[Trial]) -> Tuned:
    shape = job.shape
    return Tuned(
        kernel=kernel_key(plan),
        variant=plan.variant.name,
        phase=job.phase,
        dtype=job.dtype,
        dims=plan.dims,
        bucket=Bucket.of(shape.batch, shape.hq, shape.tq, shape.tk),
        choice=choice_of(plan),
        ms=trial.ms,
        noise=trial.noise,
        measured=sum(bool(t.samples) for t in trials),
        candidates=len(trials),
        triton=version("triton"),
        attnc=attnc.__version__,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


__all__ = ["Job", "Result", "tune"]
