"""The softmax forward of 8-bit tensors beside that of bf16, in one process, interleaved.

python -m benchmarks.fp8 OUT.json [--dims 64,128] [--tokens 4096,16384] [--tiles N]

Cells are those of `benchmarks.softmax`. `bf16` is what an op runs unasked, `e4m3` the first of the
plans or `--tiles` of them, each held to the criterion at two heads before it is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.launch import used_tensors
from attnc.ops.built import store_plan
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.verification.criterion import check
from benchmarks.record import write
from benchmarks.softmax import timed
from benchmarks.softmax_cells import Cell, cells

E4M3 = torch.float8_e4m3fn
Scaled = tuple[torch.Tensor, torch.Tensor]


def quantised(x: torch.Tensor) -> Scaled:
    """Bytes and the scale a head that uses all of e4m3's range."""
    scale = x.float().abs().amax((0, 1, 3)) / 448
    return (x.float() / scale[:, None]).to(E4M3), scale


class Contenders:
    """The calls of one cell by name, and what they have to give."""

    def __init__(self, cell: Cell, tiles: int) -> None:
        self.cell = cell
        self.op: Op = compile_op(cell.variant)
        generator = torch.Generator("cuda").manual_seed(cell.tokens + cell.dim)
        make = partial(torch.randn, device="cuda", dtype=torch.bfloat16, generator=generator)
        self.plain = [make(cell.batch, cell.tokens, cell.hq, cell.dim) for _ in range(3)]
        bytes_and_scales = [quantised(x) for x in self.plain]
        self.qkv = [x for x, _ in bytes_and_scales]
        names = ("q_scale", "k_scale", "v_scale")
        self.scales = dict(zip(names, (s for _, s in bytes_and_scales), strict=True))
        dims = (cell.dim, cell.dim)
        self.plans = plans(self.op.request(dims, "e4m3", None, False))[:tiles]

    def compile(self) -> None:
        """Compile all tiles side by side, on the first tokens."""
        part = [x[:, :64] for x in self.qkv]
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda plan: self._run(plan, part), self.plans))

    def find(self) -> dict[str, Callable[[], torch.Tensor]]:
        found: dict[str, Callable[[], torch.Tensor]] = {"bf16": lambda: self.op(*self.plain)}
        for plan in self.plans:
            found[f"e4m3 {plan.passes[-1]}"] = partial(self._run, plan, self.qkv)
        return found

    def _run(self, plan: Plan, qkv: list[torch.Tensor]) -> torch.Tensor:
        declared = [self.scales[name] for name in used_tensors(plan)]
        out: torch.Tensor = load_module(store_plan(plan)).forward(*qkv, *declared)[0]
        return out

    def judge(self, out: torch.Tensor) -> dict[str, object]:
        """The worst of two heads."""
        variant = self.op.over_scales(self.qkv[0]).variant
        facts: dict[str, object] = {}
        for b, h in ((0, 0), (self.cell.batch - 1, self.cell.hq - 1)):
            qkv = [x[b : b + 1, :, h : h + 1] for x in self.qkv]
            scales = {name: scale[h : h + 1] for name, scale in self.scales.items()}
            ref = attend(variant, *qkv, scales).out
            eager = attend(variant, *qkv, scales, dtype=torch.float32, rounding=torch.bfloat16).out
            verdict = check(out[b : b + 1, :, h : h + 1], ref, eager)
            if not facts or not verdict.passed:
                passed = verdict.passed and verdict.zeros_fail
                facts = {"passed": passed, "error": verdict.error, "bound": verdict.bound}
        return facts


def measure(cell: Cell, tiles: int) -> Iterator[dict[str, object]]:
    contenders = Contenders(cell, tiles)
    contenders.compile()
    runs = contenders.find()
    facts = {who: contenders.judge(run()) if who != "bf16" else {} for who, run in runs.items()}
    for who, samples in timed(runs).items():
        ms = statistics.median(samples)
        yield {
            "cell": cell.name, "batch": cell.batch, "tokens": cell.tokens, "heads": cell.hq,
            "dim": cell.dim, "who": who, **facts[who], "ms": round(ms, 4),
            "least": round(min(samples), 4), "tflops": round(cell.flops / ms / 1e9, 1),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--dims", type=numbers, default=[64, 128])
    parser.add_argument("--tokens", type=numbers, default=[4096, 16384])
    parser.add_argument("--tiles", type=int, default=4)
    options = parser.parse_args()
    options.work = ["plain"]
    rows: list[dict[str, object]] = []
    for cell in cells(options):
        for row in measure(cell, options.tiles):
            print(json.dumps(row), flush=True)
            rows.append(row)
        write(options.out, rows)


if __name__ == "__main__":
    main()
