"""Every candidate of the state family's passes at a few shapes: each output checked, then timed.

python -m benchmarks.state_sweep OUT.json [--cases N ...] [--phases forward backward]
    [--seconds S]

Candidates of one pass share a launch with the best of the others, so a row's time is the whole
phase's. `spills` are bytes a thread by the compiler, `us` what the planner predicted of the phase.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attnc
from attnc.autotune.measure import Trial
from attnc.autotune.tuning_store import TuningStore
from attnc.ops.tuning.tune import Result, tune
from attnc.ops.verification.draw import Shape
from benchmarks.record import write
from benchmarks.state_cases import Case, variants

CASES = (
    Case("sweep", "ungated", 8, 4096, 32, (64, 64)),
    Case("sweep", "ungated", 8, 4096, 16, (128, 128)),
    Case("sweep", "based", 8, 4096, 16, (16, 64)),
    Case("sweep", "gated", 8, 4096, 32, (64, 64)),
    Case("sweep", "elu_sum", 8, 4096, 32, (64, 64)),
    Case("sweep", "ungated", 2, 16384, 16, (128, 128)),
    Case("sweep", "based", 32, 1024, 16, (16, 64)),
)


def shape_of(case: Case) -> Shape:
    """The call of a case."""
    return Shape(case.batch, case.tokens, case.tokens, case.heads, case.heads, *case.dims)


def sweep(case: Case, phase: str, seconds: float, *, device: str = "cuda") -> Result:
    """One exhaustive search; its answer goes to a store that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        [result] = tune(
            attnc.compile(variants()[case.variant]), [shape_of(case)], phases=[phase],
            budget_s=seconds, exhaustive=True, store=TuningStore(Path(folder)), device=device,
        )  # fmt: skip
    return result


def rows_of(case: Case, phase: str, result: Result) -> Iterator[dict[str, Any]]:
    """A row a trial, those that were right and fastest first."""
    for trial in sorted(result.trials, key=_order):
        ms = round(trial.ms, 4) if trial.samples and not trial.problem else None
        yield {
            "row": case.name, "phase": phase, "tiles": trial.label, "ms": ms,
            "x_floor": None if ms is None else round(ms / case.floor_ms(phase), 2),
            "us": round(trial.predicted_us), "spills": trial.spills, "sram": trial.footprint,
            "problem": trial.problem, "passes": trial.text,
        }  # fmt: skip


def _order(trial: Trial) -> tuple[str, float]:
    timed = trial.samples and not trial.problem
    return trial.label.partition(":")[0], trial.ms if timed else float("inf")


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row that has tiles."""
    return "\n".join(
        f"{row['row']:36} {row['phase']:8} {row['tiles']:52} "
        + (
            f"{row['ms']:8.4f} ms {row['x_floor']:5.2f}x floor"
            if row["ms"]
            else row["problem"][:40]
        )
        + f" | {row['us']} us, spills {row['spills']}"
        for row in rows
        if "tiles" in row
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--phases", nargs="*", default=["backward"])
    parser.add_argument("--seconds", type=float, default=50, help="begin nothing after that many")
    options = parser.parse_args()
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    for case in (CASES[number] for number in options.cases):
        for phase in options.phases:
            left = options.seconds - (time.monotonic() - start)
            if left < 0:
                rows.append({"row": case.name, "phase": phase, "cut": "the clock"})
                continue
            result = sweep(case, phase, left)
            found = list(rows_of(case, phase, result))
            print(table(found), flush=True)
            answer = "none" if result.answer is None else "; ".join(result.answer.choice)
            rows += [*found, {"row": case.name, "phase": phase, "answer": answer}]
            write(options.out, rows)
    write(options.out, rows)


if __name__ == "__main__":
    main()
