"""Declarations that nobody wrote, drawn from the whole grammar and verified on a GPU.

python -m benchmarks.drawn OUT.json [--count N] [--seed S] [--jobs J] [--seconds T]

Every form, forward and gradients, against the fp64 reference, each variant at one drawn shape and
dtype; what no tile holds is counted as skipped. Equal seeds draw equal declarations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attnc.dsl.toml_file import loads
from attnc.errors import AttncError
from attnc.ops.verification.draw import Shape
from benchmarks.record import write
from tests.drawn_calls import shapes
from tests.strategies import HIGH_DEGREE, declarations


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Declarations as TOML, each with a dtype and a shape."""
    found: list[dict[str, Any]] = []

    @settings(
        max_examples=count, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.seed(seed)
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        text = data.draw(declarations(grad=True))
        high = any(f'"{feature_map}"' in text for feature_map in HIGH_DEGREE)
        square = data.draw(st.booleans())
        shape = data.draw(shapes(tokens=700, highest_dim=20 if high else 128, square=square))
        dtype = data.draw(st.sampled_from(["bf16", "fp16", "bf16", "fp32"]))
        found.append({"text": text, "dtype": dtype, "shape": asdict(shape)})

    draw()
    return found


def hold(case: dict[str, Any]) -> dict[str, Any]:
    """Verify one declaration at its shape: how many comparisons, and which failed."""
    from attnc.ops.verification.verify import verify

    start = time.time()
    row = {"text": case["text"], "dtype": case["dtype"], "shape": str(Shape(**case["shape"]))}
    try:
        variant = loads(case["text"], file="drawn.toml")["drawn"]
        report = verify(
            variant, device="cuda", dtypes=[case["dtype"]], shapes=[Shape(**case["shape"])]
        )
    except AttncError as error:
        return {**row, "skipped": error.message}
    failed = [r for r in json.loads(report.to_json())["rows"] if not r["passed"]]
    return {
        **row, "comparisons": len(report.rows), "failed": failed, "seed": report.seed,
        "seconds": round(time.time() - start, 1),
    }  # fmt: skip


def work(place: int, options: argparse.Namespace) -> None:
    """Verify every `jobs`-th case from `place` on, a line of JSON each.

    An error of the device spoils the process: another takes over behind the case that made it.
    """
    cases = drawn(options.count, options.seed)
    while place < len(cases):
        if time.time() > options.until:
            return
        try:
            print(json.dumps({"place": place, **hold(cases[place])}), flush=True)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:400]
            print(json.dumps({"place": place, **cases[place], "error": said}), flush=True)
            os.execv(sys.executable, _command(place + options.jobs, options))
        place += options.jobs


def _command(place: int, options: argparse.Namespace) -> list[str]:
    facts = {name: getattr(options, name) for name in ("count", "seed", "jobs", "until")}
    listed = [text for name, value in facts.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "benchmarks.drawn", "-", "--place", str(place), *listed]


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    workers = [
        subprocess.Popen(
            _command(place, options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for place in range(options.jobs)
    ]
    for worker in workers:
        said, _ = worker.communicate()
        yield from (json.loads(line) for line in said.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--until", type=float, help="for workers: when to stop, in Unix time")
    parser.add_argument("--place", type=int, help="for workers: the first case")
    options = parser.parse_args()
    options.until = options.until or time.time() + options.seconds
    if options.place is not None:
        work(options.place, options)
        return 0
    rows = sorted(_rows(options), key=lambda row: int(row["place"]))
    bad = [row for row in rows if row.get("failed") or "error" in row]
    held = [row for row in rows if "comparisons" in row]
    for row in islice(bad, 20):
        print(json.dumps(row))
    print(
        f"{len(held)} declarations, {sum(row['comparisons'] for row in held)} comparisons, "
        f"{len(bad)} bad, {sum('skipped' in row for row in rows)} skipped"
    )
    write(options.out, rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
