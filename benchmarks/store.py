"""Fill a store by exhaustive searches, and say of each what the ranked search would have lost.

python -m benchmarks.store OUT.json STORE.json [--first N] [--seconds S]

STORE.json is what `attnc tune --import` takes, and what the package ships. A ranked search measures
a part of what an exhaustive one does: of the same samples, the loss is what its winners are slower.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import attnc
from attnc.autotune.measure import Trial, winner
from attnc.autotune.tuning_store import TuningStore
from attnc.ops.placement import device_model
from attnc.ops.shipped import shipped
from attnc.ops.tuning.candidates import fitting
from attnc.ops.tuning.tune import Result, tune
from attnc.ops.verification.draw import Shape
from benchmarks.record import write

# B, T, H, K, V
WORK = (
    ("flash", (4, 4096, 16, 128, 128)),
    ("lightning", (8, 4096, 16, 128, 128)),
    ("based", (8, 4096, 16, 16, 64)),
    ("flash", (8, 2048, 16, 64, 64)),
    ("lightning", (32, 1024, 32, 64, 64)),
    ("based", (16, 1024, 16, 16, 64)),
    ("linear", (8, 4096, 32, 64, 64)),
    ("retnet", (8, 4096, 16, 128, 128)),
    ("flash_window", (4, 4096, 16, 128, 128)),
    ("flash_softcap", (4, 4096, 16, 128, 128)),
    ("flash_alibi", (4, 4096, 16, 128, 128)),
    ("retnet", (16, 2048, 16, 64, 64)),
    ("flash_window", (8, 2048, 16, 64, 64)),
    ("flash_softcap", (8, 2048, 16, 64, 64)),
    ("flash_alibi", (8, 2048, 16, 64, 64)),
    ("linear", (8, 4096, 16, 128, 128)),
)


def quality(result: Result) -> dict[str, Any]:
    """What the ranked search finds in the trials of an exhaustive one."""
    groups: dict[str, list[Trial]] = {}
    for trial in result.trials:
        backward = result.job.phase == "backward"
        groups.setdefault(trial.label.partition(":")[0] if backward else "", []).append(trial)
    best_ms = ranked_ms = 0.0
    found: dict[str, Any] = {}
    for name, trials in groups.items():
        first = winner(trials)
        copies = [replace(trial, samples=[*trial.samples]) for trial in trials]
        mine = winner(fitting(copies, exhaustive=False))
        if first is None or mine is None:
            continue
        fastest = min(t.ms for t in trials if t.samples and not t.problem)
        found[name or result.job.phase] = {
            "ms": round(mine.ms, 5), "best_ms": round(fastest, 5),
            "loss": round(mine.ms / fastest - 1, 4), "candidates": len(trials),
            "label": mine.label, "best": first.label,
        }  # fmt: skip
        ranked_ms += mine.ms - fastest
        best_ms = fastest
    return {"passes": found, "loss": round(ranked_ms / best_ms, 4) if best_ms else None}


def rows_of(results: Sequence[Result], seconds: float) -> list[dict[str, Any]]:
    """One row a job: its answer, its quality and its candidates."""
    return [
        {
            "variant": result.job.op.variant.name, "phase": result.job.phase,
            "wanted": result.job.wanted, "shape": str(result.job.shape),
            "seconds": round(seconds / len(results), 1),
            "answer_ms": None if result.answer is None else round(result.answer.ms, 5),
            "noise": None if result.answer is None else round(result.answer.noise, 4),
            "first_ms": _first_ms(result), **quality(result),
            "trials": [[t.label, round(t.predicted_us, 1), t.footprint, t.spills,
                        round(t.ms, 5) if t.samples else None, t.problem]
                       for t in result.trials],
        }
        for result in results
    ]  # fmt: skip


def _first_ms(result: Result) -> float | None:
    """What the planner's first choice takes: what an untuned device runs."""
    first = result.trials[0]
    return round(first.ms, 5) if first.samples and not first.problem else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--first", type=int, default=0, help="begin with this entry of WORK")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after that many")
    options = parser.parse_args()
    start = time.time()
    rows: list[dict[str, Any]] = []
    model = device_model(torch.device("cuda"))
    with tempfile.TemporaryDirectory() as folder:
        store = TuningStore(Path(folder))
        for name, (batch, tokens, heads, qk, v) in WORK[options.first :]:
            for phase in ("forward", "backward"):
                if time.time() - start > options.seconds:
                    return
                begin = time.time()
                shape = Shape(batch, tokens, tokens, heads, heads, qk, v)
                results = tune(
                    attnc.compile(shipped()[name], backend="triton"), [shape], phases=[phase],
                    budget_s=600, exhaustive=True, store=store,
                )  # fmt: skip
                rows += rows_of(results, time.time() - begin)
                for row in rows[-len(results) :]:
                    short = {k: v for k, v in row.items() if k not in {"trials", "passes"}}
                    print(short, flush=True)
                write(options.out, rows)
                store.export_to(model, options.store)


if __name__ == "__main__":
    main()
