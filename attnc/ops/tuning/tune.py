"""Tuning: the planner's plans, measured on the device, each output checked; the winner kept."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from attnc.autotune.compiler import CompilePool
from attnc.autotune.measure import Bench, Shown, Trial, winner
from attnc.autotune.tuning_journal import TuningJournal
from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.plan import Plan
from attnc.codegen.planning.choice import choice_of, kernel_key
from attnc.errors import InputError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.inputs import check_head_dims
from attnc.ops.op import Op
from attnc.ops.placement import device_model
from attnc.ops.ranks import from_rank_zero
from attnc.ops.tuning.candidates import (
    Candidate,
    CandidateKernels,
    fitting,
    rounds,
    trial_of,
    ways,
    with_pass,
)
from attnc.ops.tuning.job import DTYPES, Job, jobs_of, ranked_plans, request_of, save_inputs
from attnc.ops.tuning.record import answer_of, run_facts, shape_name
from attnc.ops.tuning.tuned import forget
from attnc.ops.verification.draw import Shape

PHASES = ("forward", "backward")
_MOST_PROCESSES = 16


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: the answer, its plan and every trial; None where no candidate works.

    In a distributed job rank 0 measures, and the others have its answers alone.
    """

    job: Job
    answer: Tuned | None
    plan: Plan | None = None
    trials: tuple[Trial, ...] = ()


def tune(
    op: Op | ConvolutionOp,
    shapes: Sequence[Shape],
    *,
    dtypes: Sequence[str] = ("bf16",),
    phases: Sequence[str] = PHASES,
    device: str = "cuda",
    budget_s: float = 60.0,
    exhaustive: bool = False,
    store: TuningStore | None = None,
    show: Callable[[Job, Sequence[Trial]], None] | None = None,
) -> list[Result]:
    """Tune an op for shapes, and keep the winners in the store that later calls read.

    Every job gets `budget_s` seconds; a candidate's output is held against the reference before
    its time counts. A run that was killed goes on where it stopped. In a distributed job every
    rank has to call, rank 0 measures, and all get its answers. On `cpu` the interpreter is timed,
    which tells nothing about a GPU.

    Raises:
        InputError: a dtype, a phase or head dims that tuning has none of, or gluon asked for on a
            CPU.
    """
    for kind, given, known in (("dtype", dtypes, DTYPES), ("phase", phases, PHASES)):
        for name in given:
            if name not in known:
                raise InputError(
                    f"{name!r} is no {kind} that is tuned", notes=(f"those are {', '.join(known)}",)
                )
    if not isinstance(op, ConvolutionOp):
        for shape in shapes:
            check_head_dims(shape.qk, shape.v)
    store = store or TuningStore()
    jobs = [
        job
        for shape in shapes
        for dtype in dtypes
        for phase in phases
        for job in jobs_of(op, shape, dtype, phase)
    ]
    results: list[Result] = []

    def measure() -> list[Tuned | None]:
        processes = min(_MOST_PROCESSES, os.cpu_count() or 1)
        with nullcontext() if device == "cpu" else CompilePool(processes) as pool:
            search = _Search(torch.device(device), pool, store, budget_s, exhaustive)
            for job in jobs:
                shown: Shown | None = None
                if show is not None:
                    shown = lambda trials, job=job: show(job, trials)  # noqa: E731
                results.append(search.run(job, shown))
        return [result.answer for result in results]

    answers = from_rank_zero(measure)
    if not results:
        results = [Result(job, answer) for job, answer in zip(jobs, answers, strict=True)]
        # ranks of other machines keep the answers too
        store.record(
            device_model(torch.device(device)), [found for found in answers if found is not None]
        )
    forget()
    return results


@dataclass(slots=True)
class _Search:
    """The device, the compilers and the limits that all jobs of a call share."""

    device: torch.device
    pool: CompilePool | None
    store: TuningStore
    budget_s: float
    exhaustive: bool

    def run(self, job: Job, show: Shown | None) -> Result:
        """Measure one job's candidates, and keep what wins."""
        until = time.monotonic() + self.budget_s
        ranked = ranked_plans(job, self.device)
        if self.device.type == "cpu" and ranked[0].backend == "gluon":
            raise InputError(
                "gluon's kernels are timed on an sm_90 GPU alone, and the device is cpu",
                hints=("attnc verify NAME --backend gluon runs them here, untimed",),
            )
        model = device_model(self.device)
        name = f"{kernel_key(ranked[0])}-{shape_name(job.shape)}"
        how = "exhaustive" if self.exhaustive else "ranked"
        journal = TuningJournal(
            self.store.path(model).with_suffix("") / f"{name}-{triton_version()}-{how}.journal"
        )
        everything: list[Trial] = []
        with (
            tempfile.TemporaryDirectory() as scratch,
            Bench(self.device.type) as bench,
            ThreadPoolExecutor(1) as aside,
        ):
            folder = Path(scratch)
            found = ways(ranked, exhaustive=self.exhaustive)
            groups = [rounds(way, exhaustive=self.exhaustive) for way in found]
            heads: list[Candidate] = [(None, way[0]) for way in found]
            candidates = [*heads, *(item for way in groups for group in way for item in group)]
            # the compilers work while the reference is computed, and the worker wakes the device
            compiling = aside.submit(self._compile, job, folder, candidates)
            save_inputs(job, ranked[0], self.device, folder / "inputs.pt")
            kernels = compiling.result()
            bench.load(folder / "inputs.pt")
            finalists: list[Plan] = []
            for way, of_way in zip(found, groups, strict=True):
                if finalists and time.monotonic() > until:
                    break
                best = way[0]
                for group in of_way:
                    best = self._round(job, best, group, kernels, bench, journal, until,
                                       everything, show)  # fmt: skip
                finalists.append(best)
            if len(finalists) > 1:
                group = [(None, plan) for plan in finalists]
                best = self._round(job, finalists[0], group, kernels, bench, journal, until,
                                   everything, show)  # fmt: skip
        text = "; ".join(choice_of(best))
        last = next(
            (t for t in reversed(everything) if t.text == text and t.samples and not t.problem),
            None,
        )
        if last is None:
            return Result(job, None, None, tuple(everything))
        answer = answer_of(best, last, everything)
        self.store.record(model, [answer])
        self.store.keep_run(model, name, run_facts(best, answer, job.shape, everything))
        journal.close()
        return Result(job, answer, best, tuple(everything))

    def _compile(
        self, job: Job, folder: Path, candidates: Sequence[Candidate]
    ) -> CandidateKernels | None:
        if self.pool is None:
            return None
        return CandidateKernels(self.pool, folder, candidates, general=job.general)

    def _round(
        self,
        job: Job,
        best: Plan,
        group: Sequence[Candidate],
        kernels: CandidateKernels | None,
        bench: Bench,
        journal: TuningJournal,
        until: float,
        everything: list[Trial],
        show: Shown | None,
    ) -> Plan:
        """Measure what varies one pass, or all of them; the best plan after it."""
        offered = {}
        trials = []
        for place, plan in group:
            whole = with_pass(best, place, plan)
            trial = trial_of(whole, place, request_of(job, whole), kernels)
            journal.recall(trial)
            offered[trial.text] = whole
            trials.append(trial)
        kept = fitting(trials, exhaustive=self.exhaustive)
        bench.time(kept, job.phase, until=until, show=show, journal=journal)
        everything += trials
        first = winner(kept)
        return best if first is None else offered[first.text]


def race(
    job: Job, choices: Sequence[Plan], device: str = "cuda", *, repeats: int = 40
) -> list[float]:
    """Milliseconds of plans of one job, timed in turn in one process; nan where one fails."""
    ranked = [(None, plan) for plan in choices]
    where = torch.device(device)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Bench(where.type) as bench,
        CompilePool(len(choices)) as pool,
    ):
        folder = Path(scratch)
        kernels = CandidateKernels(pool, folder, ranked, general=job.general)
        save_inputs(job, choices[0], where, folder / "inputs.pt")
        bench.load(folder / "inputs.pt")
        trials = [trial_of(plan, None, request_of(job, plan), kernels) for plan in choices]
        bench.time(
            trials, job.phase, until=time.monotonic() + 60, rounds=8, repeats=repeats // 8
        )  # fmt: skip
    return [trial.ms if trial.samples else float("nan") for trial in trials]


__all__ = ["Job", "Result", "race", "ranked_plans", "tune"]
