"""Measure many plans of a few variants, to see whether the planner's order is the card's.

python -m benchmarks.sweep OUT.json [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time

import torch
from triton.testing import do_bench

from attnc.autotune.module_cache import load_module, store_module
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.planner import plans
from attnc.codegen.planning.rank import rank_us
from attnc.codegen.text.render import render
from attnc.ops.shipped import shipped
from benchmarks.record import write

CASES = (
    ("flash", (128, 128), (4, 4096, 16)),
    ("flash", (64, 64), (4, 4096, 32)),
    ("flash", (128, 128), (1, 16384, 16)),
    ("lightning", (128, 128), (2, 16384, 16)),
    ("lightning", (64, 64), (32, 1024, 32)),
    ("linear", (64, 64), (8, 4096, 32)),
    ("based", (16, 64), (8, 4096, 16)),
    ("based", (16, 64), (2, 16384, 16)),
)


def spread(ranked: tuple[Plan, ...], count: int) -> list[Plan]:
    """The first few by rank, then some from all over the list."""
    first = list(ranked[: count // 2])
    rest = ranked[count // 2 :]
    step = max(1, len(rest) // max(1, count - len(first)))
    return first + list(itertools.islice(rest[::step], count - len(first)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--case", type=int, help="one case in this process")
    options = parser.parse_args()
    if options.case is None:
        # a case that poisons the CUDA context loses itself alone
        rows = []
        for case in range(len(CASES)):
            command = [
                sys.executable,
                "-m",
                "benchmarks.sweep",
                "-",
                "--case",
                str(case),
                "--count",
                str(options.count),
                "--seconds",
                str(options.seconds),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            rows.extend(json.loads(line) for line in done.stdout.splitlines() if line[0] == "{")
        write(options.out, rows)
        return
    start = time.time()
    for name, dims, (batch, tokens, heads) in CASES[options.case : options.case + 1]:
        variant = shipped()[name]
        make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        q, k = (make(batch, tokens, heads, dims[0]) for _ in range(2))
        v = make(batch, tokens, heads, dims[1])
        extra = [torch.rand(heads, device="cuda") * 0.1 for _ in variant.params]
        work = Workload(batch, tokens, tokens, heads, heads)
        ranked = plans(Request(variant, DEVICES["h100"], dims, workload=work, backend="triton"))
        truth = None
        for rank, plan in enumerate(ranked):
            if plan not in spread(ranked, options.count):
                continue
            if time.time() - start > options.seconds:
                break
            row: dict[str, object] = {
                "variant": name, "dims": dims, "shape": [batch, tokens, heads], "rank": rank,
                "plan": [str(step) for step in plan.passes],
                "rank_us": round(sum(rank_us(s, Request(variant, DEVICES["h100"], dims,
                                                        workload=work)) for s in plan.passes), 1),
                "roofline_us": round(plan.time_us, 1),
            }  # fmt: skip
            try:
                module = load_module(store_module(render(plan), f"sweep_{name}"))
                run = lambda: module.forward(q, k, v, *extra)  # noqa: B023, E731
                out = run()
                out = out[0] if isinstance(out, tuple) else out
                truth = out.float() if truth is None else truth
                row["off"] = round(((out.float() - truth).norm() / truth.norm()).item(), 5)
                row["ms"] = round(do_bench(run, warmup=10, rep=40, return_mode="median"), 4)
            except Exception as error:  # a candidate that fails is a row, not the end
                row["error"] = f"{type(error).__name__}: {error}"[:160]
            print(json.dumps(row), flush=True)
            print(row, file=sys.stderr)
            if "error" in row and "CUDA" in str(row["error"]):
                return


if __name__ == "__main__":
    main()
