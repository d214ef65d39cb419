"""Tuning held against the exhaustive search: how near its winners come, and in what time.

python -m benchmarks.tuning OUT.json [--cases N ...]

Each job runs twice in a process of its own, ranked and exhaustive, each with an empty compiler
cache and an empty store; then both winners are timed again, in turn, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import write


@dataclass(frozen=True)
class Case:
    """One kernel and shape: B, T, H, K, V."""

    variant: str
    phase: str
    shape: tuple[int, int, int, int, int]


CASES = tuple(
    Case(variant, phase, shape)
    for variant, shape in (
        ("flash", (4, 4096, 16, 128, 128)),
        ("flash", (8, 2048, 16, 64, 64)),
        ("lightning", (8, 4096, 16, 128, 128)),
        ("lightning", (32, 1024, 32, 64, 64)),
        ("based", (8, 4096, 16, 16, 64)),
        ("based", (16, 1024, 16, 16, 64)),
    )
    for phase in ("forward", "backward")
)


def job_of(case: Case) -> Any:
    """The case as tuning takes it."""
    import attnc
    from attnc.ops.shipped import shipped
    from attnc.ops.tuning.tune import Job
    from attnc.ops.verification.draw import Shape

    batch, tokens, heads, qk, v = case.shape
    shape = Shape(batch, tokens, tokens, heads, heads, qk, v)
    return Job(attnc.compile(shipped()[case.variant], backend="triton"), shape, "bf16", case.phase)


def search(case: Case, *, exhaustive: bool) -> dict[str, Any]:
    """One tuning run in this process: its seconds, its answer and all its trials."""
    start = time.time()
    from attnc.autotune.tuning_store import TuningStore
    from attnc.ops.tuning.tune import tune

    job = job_of(case)
    ready = time.time()
    (result,) = tune(
        job.op, [job.shape], phases=[case.phase], budget_s=600 if exhaustive else 60,
        exhaustive=exhaustive, store=TuningStore(Path(os.environ["ATTNC_CACHE_DIR"]) / "tuning"),
    )  # fmt: skip
    trials = [
        {"label": t.label, "predicted_us": round(t.predicted_us, 1), "shared": t.footprint,
         "spills": t.spills, "ms": round(t.ms, 5) if t.samples else None,
         "noise": round(t.noise, 4) if t.samples else None, "problem": t.problem}
        for t in result.trials
    ]  # fmt: skip
    return {
        "imports_s": round(ready - start, 1),
        "seconds": round(time.time() - ready, 1),
        "answer": None if result.answer is None else asdict(result.answer),
        "trials": trials,
    }


def final(case: Case, choices: list[list[str]]) -> list[float]:
    """Milliseconds of winners, timed in turn."""
    import torch

    from attnc.codegen.planning.choice import chosen
    from attnc.ops.tuning.tune import race, ranked_plans

    job = job_of(case)
    ranked = ranked_plans(job, torch.device("cuda"))
    found = [chosen(ranked, tuple(choice)) for choice in choices]
    return race(job, found)


def run(case: Case) -> dict[str, Any]:
    """Both searches, each a process with empty caches, and a race of their winners."""
    row: dict[str, Any] = asdict(case)
    facts: dict[str, dict[str, Any]] = {}
    for how in ("ranked", "exhaustive"):
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = _process(case, how, folder)
        if isinstance(found, str):
            return {**row, "how": how, "error": found}
        facts[how] = found
        row[f"{how}_wall_s"] = seconds
        row[f"{how}_s"] = found["seconds"]
    choices = [facts[how]["answer"]["choice"] for how in facts if facts[how]["answer"]]
    if len(choices) == 2:
        row["same"] = choices[0] == choices[1]
        times, _ = _process(case, json.dumps(choices), os.environ.get("ATTNC_CACHE_DIR", ""))
        if not isinstance(times, str):
            row |= {"race_ms": times, "loss": round(times[0] / times[1] - 1, 4)}
    return {**row, **facts}


def _process(case: Case, what: str, folder: str) -> tuple[Any, float]:
    command = [sys.executable, "-m", "benchmarks.tuning", "-", json.dumps(asdict(case)), what]
    start = time.time()
    caches = {"TRITON_CACHE_DIR": folder, "ATTNC_CACHE_DIR": folder} if folder else {}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | caches
    )  # fmt: skip
    seconds = round(time.time() - start, 1)
    if done.returncode:
        return done.stderr[-1500:], seconds
    return json.loads(done.stdout.splitlines()[-1]), seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("one", nargs="*")
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    options = parser.parse_args()
    if options.out == "-":
        facts = json.loads(options.one[0])
        case = Case(facts["variant"], facts["phase"], tuple(facts["shape"]))
        what = options.one[1]
        if what in {"ranked", "exhaustive"}:
            print(json.dumps(search(case, exhaustive=what == "exhaustive")))
        else:
            print(json.dumps(final(case, json.loads(what))))
        return
    rows: list[dict[str, Any]] = []
    for number in options.cases:
        row = run(CASES[number])
        rows.append(row)
        print({k: v for k, v in row.items() if not isinstance(v, dict)}, flush=True)
        write(Path(options.out), rows)


if __name__ == "__main__":
    main()
