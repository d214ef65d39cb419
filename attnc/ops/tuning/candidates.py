"""A plan's rivals as trials: what is measured together, compiled side by side beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.launcher import parameters
from attnc.autotune.measure import Trial
from attnc.autotune.module_cache import store_module
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, Verdict
from attnc.codegen.kernel_spec import KernelSpec
from attnc.codegen.plan import FUSED, Plan, Request
from attnc.codegen.planning.choice import choice_of, goes_whole, way_of
from attnc.codegen.planning.planner import predicted_us
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.render import render, render_launcher

# that many are measured a kernel; an exhaustive search measures all
MOST = 10
# and that many ways
_MOST_WAYS = 3
# what is predicted to take so many times as long as the first would waste the others' time
_FAR = 20
# what spills more bytes a thread than this is dropped where something else is left
_SPILLED = 1024

# a pass of a plan by its place, and its tiles
Step = tuple[int, str]
# a candidate: the place of the pass that it varies, None for all of them, and the plan it is from
Candidate = tuple[int | None, Plan]


def ways(ranked: Sequence[Plan], *, exhaustive: bool) -> list[list[Plan]]:
    """The ranked plans by their passes: each way is tuned, then the best race each other."""
    if ranked[0].phase == "forward":
        return [list(ranked)]
    found: dict[tuple[tuple[str, ...], int], list[Plan]] = {}
    for plan in ranked:
        found.setdefault(way_of(plan), []).append(plan)
    return list(found.values())[: None if exhaustive else _MOST_WAYS]


def rounds(ranked: Sequence[Plan], *, exhaustive: bool) -> list[list[Candidate]]:
    """What is measured together: whole plans where passes share tiles, else pass after pass."""
    limit = len(ranked) if exhaustive else 2 * MOST
    if goes_whole(ranked[0]):
        return [[(None, plan) for plan in ranked[:limit]]]
    found: list[list[Candidate]] = []
    for place in range(len(ranked[0].passes)):
        distinct = {str(plan.passes[place]): plan for plan in reversed(ranked)}
        steps = [plan for plan in ranked if distinct.get(str(plan.passes[place])) is plan]
        if len(steps) > 1:
            found.append([(place, plan) for plan in steps[:limit]])
    return found or [[(None, ranked[0])]]


def with_pass(best: Plan, place: int | None, plan: Plan) -> Plan:
    """The best plan so far with one pass of another, or the other itself if it goes another way."""
    if place is None or way_of(best) != way_of(plan):
        return plan
    passes = (*best.passes[:place], plan.passes[place], *best.passes[place + 1 :])
    return replace(best, passes=passes)


class CandidateKernels:
    """The binaries of all that a search may launch, each pass with its tiles compiled once.

    `general` ones are promised nothing of strides and alignment.
    """

    def __init__(
        self,
        pool: CompilePool,
        folder: Path,
        candidates: Sequence[Candidate],
        *,
        general: bool = False,
    ) -> None:
        self._folder = folder
        jobs: dict[Step, CompileJob] = {}
        first = candidates[0][1]
        for step, plan in _steps(first, candidates):
            if step not in jobs:
                path = store_module(render(plan), f"{plan.variant.name}_{plan.form}")
                spec = kernel_specs(plan, general=general)[step[0]]
                jobs[step] = CompileJob(path, spec, Target.parse(plan.device.target))
        verdicts = pool.map(list(jobs.values()))
        self._found = {
            step: (job.kernel, verdict)
            for (step, job), verdict in zip(jobs.items(), verdicts, strict=True)
        }

    def fill(self, trial: Trial, plan: Plan, place: int | None) -> None:
        """Give a trial its kernels and what the compiler says of them, or why it has none."""
        found = [self._found[n, str(step)] for n, step in enumerate(plan.passes)]
        for spec, verdict in found:
            if not isinstance(verdict, Compiled):
                trial.problem = f"{spec.name} does not compile: {verdict.message}"
                return
        compiled = [verdict for _, verdict in found if isinstance(verdict, Compiled)]
        trial.footprint = max(verdict.shared_bytes for verdict in compiled)
        varied = compiled if place is None else [compiled[place]]
        trial.spills = sum(verdict.spill_stores or 0 for verdict in varied)
        if trial.footprint > plan.device.sram_bytes:
            trial.problem = f"takes {trial.footprint:,} B of SRAM by the compiler"
            return
        if plan.backend != "gluon":
            trial.kernels = [self._entry(spec, verdict) for spec, verdict in found]

    def _entry(self, spec: KernelSpec, verdict: Verdict) -> dict[str, Any]:
        assert isinstance(verdict, Compiled) and verdict.ptx is not None
        path = self._folder / f"{hashlib.sha256(verdict.binary).hexdigest()}.cubin"
        if not path.exists():
            path.write_bytes(verdict.binary)
        return {
            "kernel": spec.name,
            "file": str(path),
            "entry": verdict.name,
            "num_warps": verdict.num_warps,
            "shared_bytes": verdict.shared_bytes,
            "parameters": parameters(verdict.ptx),
            "arguments": [asdict(argument) for argument in spec.arguments],
        }


def _steps(first: Plan, candidates: Sequence[Candidate]) -> Iterator[tuple[Step, Plan]]:
    for place, plan in ((None, first), *candidates):
        whole = with_pass(first, place, plan)
        for n, step in enumerate(whole.passes):
            if place is None or n == place:
                yield (n, str(step)), whole


def trial_of(
    plan: Plan, place: int | None, request: Request, kernels: CandidateKernels | None
) -> Trial:
    """A plan as a trial; without `kernels` it is interpreted."""
    name = f"tune_{plan.variant.name}_{plan.phase}"
    predicted = predicted_us(plan, request)
    # the passes of a forward share their tiles: the last one stands for all, and what is fused
    fused = next((n for n, step in enumerate(plan.passes) if step.kernel.name == FUSED), -1)
    label = str(plan.passes[fused if place is None else place])
    # kernels that take descriptors are launched by Triton, from their module
    whole = kernels is None or plan.backend == "gluon"
    text = render(plan) if whole else render_launcher(plan)
    trial = Trial(
        store_module(text, name), "; ".join(choice_of(plan)), label, predicted, plan.sram_bytes
    )
    if kernels is not None:
        kernels.fill(trial, plan, place)
    return trial


def fitting(trials: Sequence[Trial], *, exhaustive: bool) -> list[Trial]:
    """At most ten of those that compile: the fastest by prediction, what spills much left out.

    Nor is what no prediction errs by: a filter's forms are of another order of work.
    """
    usable = [trial for trial in trials if not trial.problem]
    if exhaustive:
        return usable
    light = [trial for trial in usable if (trial.spills or 0) <= _SPILLED]
    if light:
        for trial in usable:
            if trial not in light:
                trial.problem = f"not measured: spills {trial.spills:,} B a thread"
    kept = sorted(light or usable, key=lambda t: (0 if light else t.spills or 0, t.predicted_us))
    for trial in kept[MOST:]:
        trial.problem = "not measured: ten were predicted to be faster"
    for trial in kept[:MOST]:
        if trial.predicted_us > _FAR * max(kept[0].predicted_us, 1e-3):
            trial.problem = f"not measured: predicted to take {_FAR} times as long as the first"
    return [trial for trial in kept[:MOST] if not trial.problem]
