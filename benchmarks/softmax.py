"""The softmax forward of both backends beside cuDNN and FlexAttention, in one process, interleaved.

python -m benchmarks.softmax OUT.json [--work plain,variants] [--dims 64,128] [--tokens 1024,16384]
    [--who triton,gluon,persistent,cudnn,flex] [--tiles N] [--only NAME] [--seconds N]

Each contender's output is held to the design's criterion at two heads before it is timed. `gluon`
is the first of its plans, or `--tiles` of them, `persistent` the first whose programs take several
places. FlexAttention, which compiles for ten seconds a cell, runs the variants unless `--who` names
it. No cell is begun after `--seconds`; what is left out is said. Options cut a run into pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.planner import plans
from attnc.ops.built import store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt, reference
from attnc.ops.verification.criterion import check
from benchmarks.record import write
from benchmarks.softmax_cells import Cell, cells

_HEADS_CHECKED = 2
_ROUNDS, _CALLS = 9, 4
_WHO = {
    "plain": ("triton", "gluon", "persistent", "cudnn"),
    "variants": ("triton", "gluon", "persistent", "cudnn", "flex"),
}


class Contenders:
    """Who runs a cell, by name: calls that take nothing and return o as [B, T, H, D]."""

    def __init__(self, cell: Cell, options: argparse.Namespace) -> None:
        self.cell, self._options = cell, options
        generator = torch.Generator("cuda").manual_seed(cell.tokens + cell.dim)
        make = partial(torch.randn, device="cuda", dtype=torch.bfloat16, generator=generator)
        self.q = make(cell.batch, cell.tokens, cell.hq, cell.dim)
        self.k, self.v = (make(cell.batch, cell.tokens, cell.hkv, cell.dim) for _ in range(2))
        slopes = [2.0 ** (-8 * (n + 1) / cell.hq) for n in range(cell.hq)]
        self.tensors = (
            {"slope": torch.tensor(slopes, device="cuda")} if cell.name == "alibi" else {}
        )

    def find(self) -> dict[str, Callable[[], torch.Tensor]]:
        makers = {
            "triton": self._triton,
            "gluon": self._gluon,
            "persistent": self._persistent,
            "cudnn": self._cudnn,
            "flex": self._flex,
        }
        found: dict[str, Callable[[], torch.Tensor]] = {}
        for who in self._options.who or _WHO[self.cell.work]:
            found |= makers[who]()
        return found

    def _triton(self) -> dict[str, Callable[[], torch.Tensor]]:
        op = compile_op(self.cell.variant, backend="triton")
        return {"triton": lambda: op(self.q, self.k, self.v, **self.tensors)}

    def _gluon(self) -> dict[str, Callable[[], torch.Tensor]]:
        return self._runs(gluon_plans(self.cell)[: self._options.tiles])

    def _persistent(self) -> dict[str, Callable[[], torch.Tensor]]:
        return self._runs(persistent_plans(self.cell)[: self._options.tiles])

    def _runs(self, chosen: Sequence[Plan]) -> dict[str, Callable[[], torch.Tensor]]:
        found = {}
        for plan in chosen:
            run = load_module(store_plan(plan)).forward
            call = partial(run, self.q, self.k, self.v, *self.tensors.values())
            found[f"gluon {plan.passes[0]}"] = lambda call=call: call()[0]
        return found

    def _cudnn(self) -> dict[str, Callable[[], torch.Tensor]]:
        if self.cell.name not in {"full", "causal", "gqa"}:
            return {}
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        more = {"enable_gqa": True} if self.cell.hq != self.cell.hkv else {}
        causal = self.cell.name != "full"

        def run() -> torch.Tensor:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                attend = torch.nn.functional.scaled_dot_product_attention
                return attend(q, k, v, is_causal=causal, **more).transpose(1, 2)

        return {"cudnn": run}

    def _flex(self) -> dict[str, Callable[[], torch.Tensor]]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        name, tokens = self.cell.name, self.cell.tokens
        width = int(name.removeprefix("window")) if name.startswith("window") else tokens
        seen = lambda b, h, i, j: (i >= j) & (i - j < width)  # noqa: E731
        mask = None if name == "full" else create_block_mask(seen, None, None, tokens, tokens)
        slopes = self.tensors.get("slope")
        scores: dict[str, Any] = {
            "alibi": lambda s, b, h, i, j: s - slopes[h] * (i - j),  # type: ignore[index]
            "softcap": lambda s, b, h, i, j: 50.0 * torch.tanh(s / 50.0),
        }
        attend = torch.compile(flex_attention, dynamic=False)
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        gqa = self.cell.hq != self.cell.hkv

        def run() -> torch.Tensor:
            score = scores.get(name)
            out = attend(q, k, v, score_mod=score, block_mask=mask, enable_gqa=gqa)
            return out.transpose(1, 2)

        return {"flex": run}

    def expected(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The fp64 reference, and eager torch in bf16, at the first and the last head."""
        refs, rounded = [], []
        group = self.cell.hq // self.cell.hkv
        for b, h in ((0, 0), (self.cell.batch - 1, self.cell.hq - 1))[:_HEADS_CHECKED]:
            q = self.q[b : b + 1, :, h : h + 1]
            k, v = (x[b : b + 1, :, h // group : h // group + 1] for x in (self.k, self.v))
            own = {name: x[h : h + 1] for name, x in self.tensors.items()}
            refs.append(reference(self.cell.variant, q, k, v, own))
            rounded.append(pt(self.cell.variant, q, k, v, own))
        return refs, rounded

    def judge(self, out: torch.Tensor, expected: tuple[list[Any], list[Any]]) -> dict[str, object]:
        places = ((0, 0), (self.cell.batch - 1, self.cell.hq - 1))
        verdicts = [
            check(out[b : b + 1, :, h : h + 1], ref, rounded)
            for (b, h), ref, rounded in zip(places, *expected, strict=True)
        ]
        worst = max(verdicts, key=lambda verdict: verdict.error / verdict.bound)
        passed = all(verdict.passed and verdict.zeros_fail for verdict in verdicts)
        return {"passed": passed, "error": worst.error, "bound": worst.bound}


def gluon_plans(cell: Cell) -> tuple[Plan, ...]:
    op = compile_op(cell.variant, backend="gluon")
    return plans(op.request((cell.dim, cell.dim), "bf16", None, False))


def persistent_plans(cell: Cell) -> tuple[Plan, ...]:
    return tuple(plan for plan in gluon_plans(cell) if "P" in plan.passes[0].tile)


def warm(found: list[Cell], options: argparse.Namespace) -> None:
    """Compile all that Triton compiles side by side, on small tensors."""
    distinct = {}
    for cell in found:
        who = options.who or _WHO[cell.work]
        chosen = list(gluon_plans(cell)[: options.tiles]) if "gluon" in who else []
        chosen += persistent_plans(cell)[: options.tiles] if "persistent" in who else []
        if "triton" in who:
            op = compile_op(cell.variant, backend="triton")
            chosen.append(plans(op.request((cell.dim, cell.dim), "bf16", None, False))[0])
        for plan in chosen:
            distinct[plan.digest] = (cell, plan)

    def build(cell: Cell, plan: Plan) -> None:
        make = partial(torch.zeros, device="cuda", dtype=torch.bfloat16)
        q = make(1, 64, cell.hq, cell.dim)
        k, v = (make(1, 64, cell.hkv, cell.dim) for _ in range(2))
        slopes = [torch.zeros(cell.hq, device="cuda")] if cell.name == "alibi" else []
        load_module(store_plan(plan)).forward(q, k, v, *slopes)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda item: build(*item), distinct.values()))


def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds a call, of rounds in which every contender runs in turn."""
    samples: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(_ROUNDS):
        for who, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)  # launches queue up behind it: the host is not timed
            begin.record()
            for _ in range(_CALLS):
                run()
            end.record()
            end.synchronize()
            samples[who].append(begin.elapsed_time(end) / _CALLS)
    return samples


def measure(cell: Cell, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    contenders = Contenders(cell, options)
    expected = contenders.expected()
    runs, facts = {}, {}
    for who, run in contenders.find().items():
        try:
            facts[who] = contenders.judge(run(), expected)
            run()
            runs[who] = run
        except Exception as error:  # a contender that fails is a row, not the end
            facts[who] = {"problem": f"{type(error).__name__}: {error}"[:300]}
    yield from timed_rows(cell, facts, runs, cell.flops)


def timed_rows(
    cell: Cell, facts: Mapping[str, Mapping[str, object]],
    runs: dict[str, Callable[[], Any]], flops: float,
) -> Iterator[dict[str, object]]:  # fmt: skip
    """A row a contender: the cell, the `facts` about it, and its time where it ran."""
    samples = timed(runs)
    for who, fact in facts.items():
        row: dict[str, object] = {
            "cell": cell.name, "batch": cell.batch, "tokens": cell.tokens, "hq": cell.hq,
            "hkv": cell.hkv, "dim": cell.dim, "who": who, **fact,
        }  # fmt: skip
        if who in samples:
            ms = statistics.median(samples[who])
            row |= {
                "ms": round(ms, 4),
                "least": round(min(samples[who]), 4),
                "tflops": round(flops / ms / 1e9, 1),
            }
        yield row


def main(
    warm: Callable[[list[Cell], argparse.Namespace], None] = warm,
    measure: Callable[[Cell, argparse.Namespace], Iterator[dict[str, object]]] = measure,
) -> None:
    """Compile all cells by `warm`, then `measure` one after the other, and write the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--work", type=names, default=["plain"])
    parser.add_argument("--dims", type=numbers, default=[64, 128])
    parser.add_argument("--tokens", type=numbers, default=[1024, 4096, 16384])
    parser.add_argument("--who", type=names, default=None)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--only", help="one cell by name")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    start = time.time()
    found = [cell for cell in cells(options) if options.only in {None, cell.name}]
    warm(found, options)
    print(f"compiled after {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    rows: list[dict[str, object]] = []
    for number, cell in enumerate(found):
        if time.time() - start > options.seconds:
            left = ", ".join(f"{item.name} D={item.dim} T={item.tokens}" for item in found[number:])
            print(f"left out: {left}", file=sys.stderr)
            break
        for row in measure(cell, options):
            print(json.dumps(row), flush=True)
            rows.append(row)
        write(options.out, rows)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
