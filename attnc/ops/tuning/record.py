"""What a tuning run leaves behind: its answer for the store, and all it saw for `attnc report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import attnc
from attnc.autotune.measure import Trial
from attnc.autotune.tuning_store import Tuned
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.plan import Plan
from attnc.codegen.planning.choice import Bucket, choice_of, kernel_key
from attnc.codegen.text.render import render
from attnc.ops.verification.convolution import FilterShape
from attnc.ops.verification.draw import Shape


def shape_name(shape: Shape) -> str:
    """A shape in a file's name."""
    sizes = (shape.batch, shape.tq, shape.tk, shape.hq, shape.hkv, shape.qk, shape.v)
    taps = (shape.taps,) if isinstance(shape, FilterShape) else ()
    return "x".join(map(str, (*sizes, *taps)))


def run_facts(plan: Plan, answer: Tuned, shape: Shape, trials: Sequence[Trial]) -> dict[str, Any]:
    """All that one run saw, as `attnc report` draws it."""
    buffers = [
        {"pass": step.kernel.name, "name": use.name, "bytes": use.nbytes * use.copies}
        for step in plan.passes
        for use in step.cost.buffers
    ]
    return {
        "variant": plan.variant.summary,
        "answer": asdict(answer),
        "shape": str(shape),
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
            for trial in trials
        ],
    }


def answer_of(plan: Plan, trial: Trial, trials: Sequence[Trial]) -> Tuned:
    """The answer that a winning trial gives for the bucket of the shape it was planned for."""
    work = plan.workload
    return Tuned(
        kernel=kernel_key(plan),
        variant=plan.variant.name,
        phase=plan.phase,
        dtype=plan.dtype,
        dims=plan.dims,
        bucket=Bucket.of(work.batch, work.hq, work.tq, work.tk),
        choice=choice_of(plan),
        ms=trial.ms,
        noise=trial.noise,
        measured=sum(bool(t.samples) for t in trials),
        candidates=len(trials),
        triton=triton_version(),
        attnc=attnc.__version__,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
