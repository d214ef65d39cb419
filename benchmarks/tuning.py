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
from collections.abc import Iterator
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


def search(case: Case, *, exhaustive: bool) -> dict[str, Any]:
    """One tuning run in this process: its seconds, its answer and all its trials."""
    start = time.time()
    import attnc
    from attnc.autotune.tuning_store import TuningStore
    from attnc.ops.draw import Shape
    from attnc.ops.shipped import shipped
    from attnc.ops.tune import tune

    batch, tokens, heads, qk, v = case.shape
    shape = Shape(batch, tokens, tokens, heads, heads, qk, v)
    (result,) = tune(
        attnc.compile(shipped()[case.variant]), [shape], phases=[case.phase],
        budget_s=600 if exhaustive else 60, exhaustive=exhaustive,
        store=TuningStore(Path(os.environ["TRITON_CACHE_DIR"]) / "store"),
    )  # fmt: skip
    trials = [
        {"text": t.text, "label": t.label, "predicted_us": t.predicted_us, "shared": t.footprint,
         "spills": t.spills, "ms": t.ms if t.samples else None, "noise": t.noise,
         "problem": t.problem}
        for t in result.trials
    ]  # fmt: skip
    return {
        "seconds": round(time.time() - start, 1),
        "answer": None if result.answer is None else asdict(result.answer),
        "trials": trials,
    }


def run(case: Case) -> Iterator[dict[str, Any]]:
    """Both searches, each a process with empty caches; the ranked one's winner among all others."""
    found: dict[str, dict[str, Any]] = {}
    for how in ("ranked", "exhaustive"):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "benchmarks.tuning",
                "-",
                json.dumps(asdict(case)),
                how,
            ]
            start = time.time()
            done = subprocess.run(
                command, capture_output=True, text=True, check=False,
                env=os.environ | {"TRITON_CACHE_DIR": folder, "XDG_CACHE_HOME": folder},
            )  # fmt: skip
            if done.returncode:
                yield {**asdict(case), "how": how, "error": done.stderr[-1500:]}
                return
            found[how] = json.loads(done.stdout.splitlines()[-1])
            found[how]["wall_seconds"] = round(time.time() - start, 1)
    times = {t["text"]: t["ms"] for t in found["exhaustive"]["trials"] if t["ms"]}
    row: dict[str, Any] = {**asdict(case)}
    answers = {how: facts["answer"] for how, facts in found.items()}
    if all(answers.values()):
        best = min(answers["exhaustive"]["ms"], *times.values())
        mine = times.get("; ".join(answers["ranked"]["choice"]), answers["ranked"]["ms"])
        row |= {"loss": round(mine / best - 1, 4), "ranked_ms": mine, "best_ms": best}
    row |= {f"{how}_seconds": facts["wall_seconds"] for how, facts in found.items()}
    row |= {"ranked": found["ranked"], "exhaustive": found["exhaustive"]}
    yield row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("one", nargs="*")
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    options = parser.parse_args()
    if options.out == "-":
        facts = json.loads(options.one[0])
        case = Case(facts["variant"], facts["phase"], tuple(facts["shape"]))
        print(json.dumps(search(case, exhaustive=options.one[1] == "exhaustive")))
        return
    rows: list[dict[str, Any]] = []
    for number in options.cases:
        for row in run(CASES[number]):
            rows.append(row)
            short = {k: v for k, v in row.items() if k not in {"ranked", "exhaustive"}}
            print(short, flush=True)
            write(Path(options.out), rows)


if __name__ == "__main__":
    main()
