"""The whole verification on a GPU, one process a variant, and its record.

python -m benchmarks.verify OUT.json [NAME ...] [--dtype bf16 ...] [--brief]

Without names it is the whole gallery. `--brief` takes half of the shapes: every kind of length, at
a variant's own head dims alone, up to 4,096 tokens.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import time
from pathlib import Path

from attnc.dsl import load
from attnc.ops.shipped import shipped
from benchmarks.record import write


def one(argument: str, dtypes: list[str], *, brief: bool) -> list[dict[str, object]]:
    """Verify one variant in this process: a shipped name, or FILE:NAME."""
    import torch

    from attnc.ops.verification.verify import Shape, default_shapes, verify

    file, _, name = argument.rpartition(":")
    variant = load(file)[name] if file else shipped()[argument]
    start = time.time()
    shapes: list[Shape] | None = None
    if brief:
        every = default_shapes(variant, torch.device("cuda"))
        dims = every[0].qk, every[0].v
        shapes = [s for s in every if (s.qk, s.v) == dims and max(s.tq, s.tk) <= 4096]
    report = verify(variant, device="cuda", dtypes=dtypes, shapes=shapes)
    facts = json.loads(report.to_json())
    rows = facts["rows"]
    for row in rows:
        row["variant"] = argument
    rows.append({"variant": argument, "seconds": round(time.time() - start, 1),
                 "seed": facts.get("seed"), "skipped": facts.get("skipped"),
                 "passed": report.passed})  # fmt: skip
    return rows


def said(stderr: str) -> str:
    """What an exception says: the lines after its traceback, whose paths are a machine's own."""
    lines = stderr.rstrip().splitlines()
    last = max(
        (
            n
            for n, line in enumerate(lines)
            if line.startswith((" ", "\t"))
            and not line.startswith("  hint")
            and not line.startswith("  note")
        ),
        default=-1,
    )
    return "\n".join(lines[last + 1 :])[-1500:]


def _child(argument: str, options: argparse.Namespace) -> list[dict[str, object]]:
    limit = options.limit
    command = [sys.executable, "-m", "benchmarks.verify", "-", argument, "--dtype", *options.dtype]
    command += ["--brief"] if options.brief else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        tail = (error.stderr or b"").decode(errors="replace")[-800:]
        return [{"variant": argument, "passed": False, "error": f"over {limit} s: {tail}"}]
    if done.returncode:
        return [{"variant": argument, "passed": False, "error": said(done.stderr)}]
    rows: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dtype", nargs="*", default=["fp16", "bf16", "fp32"])
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=400, help="seconds a variant")
    parser.add_argument("--brief", action="store_true", help="half of the shapes")
    options = parser.parse_args()
    names = options.names or list(shipped())
    if options.out == "-":
        print(json.dumps(one(names[0], options.dtype, brief=options.brief)))
        return 0
    rows: list[dict[str, object]] = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        asked = {pool.submit(_child, name, options): name for name in names}
        for done in concurrent.futures.as_completed(asked):
            name, found = asked[done], done.result()
            rows.extend(found)
            bad = [row for row in found if not row.get("passed", True)]
            print(f"{name}: {len(found)} rows, {len(bad)} failed, {found[-1]}", flush=True)
            for row in bad[:6]:
                print("  ", row, flush=True)
            # a run that is cut short leaves what it has
            write(Path(options.out), rows)
    return 1 if any(not row.get("passed", True) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
