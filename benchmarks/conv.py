"""Long convolutions beside torch.fft in fp32: every timed output checked, times, ratios, memory.

python -m benchmarks.conv OUT.json [--rows PREFIX ...] [--phases forward both] [--dtype bf16]
    [--forms fft three_pass] [--every] [--seconds N]

A row is named kind/T and chosen by how its name starts. `both` is a forward with its backward. A
row of ours says which form was planned and with which tiles; --forms times forms that the planner
would not choose beside it, --every each of their plans, forward. What --seconds cut is listed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

import attnc
from attnc.codegen.plan import Workload
from attnc.codegen.planning.planner import plans
from attnc.dsl import loads
from attnc.ops.built import Built, launch, store_plan
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.placement import planner_device
from benchmarks.record import write

_TEXT = """
[plain]
weight = "w[c, i-j]"
mask = "causal"
params.w = { shape = ["c", "T"], grad = true }

[gated]
weight = "w[c, i-j]"
mask = "causal"
pregate = "a[b,t,c]"
postgate = "g[b,t,c]"
params.w = { shape = ["c", "T"], grad = true }
inputs.a = { shape = ["b", "t", "c"], grad = true }
inputs.g = { shape = ["b", "t", "c"], grad = true }
"""
# relative error in 16 bits that is more than rounding; fp32 against fp64
_WRONG, _WRONG_FP32 = 0.02, 1e-4
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# channels that fp64 is asked for
_SAMPLED = 4

Row = dict[str, Any]
Call = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution at one size, a tap a token."""

    kind: str
    batch: int
    tokens: int
    channels: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.tokens}"


def cases() -> tuple[Case, ...]:
    """What matters first; batches that fill the card and leave room for torch.fft's spectra."""
    sizes = [(1024, 64), (8192, 32), (4096, 32), (16384, 16), (65536, 4), (2048, 64), (32768, 8)]
    plain = [Case("plain", batch, tokens, 768) for tokens, batch in sizes]
    gated = [Case("gated", batch, tokens, 768) for tokens, batch in sizes[:4]]
    return (*plain[:5], *gated, *plain[5:], Case("plain", 2, 131072, 768))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--rows", nargs="*", default=[""])
    parser.add_argument("--phases", nargs="*", default=["forward", "both"])
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bf16")
    parser.add_argument("--forms", nargs="*", default=[])
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--seconds", type=float, default=55)
    options = parser.parse_args()
    start = time.monotonic()
    ops = {name: attnc.compile(variant) for name, variant in loads(_TEXT).items()}
    rows: list[Row] = []
    for case in cases():
        if not case.name.startswith(tuple(options.rows)):
            continue
        if time.monotonic() - start > options.seconds:
            rows.append({"row": case.name, "cut": "the clock"})
            continue
        found = run(case, ops[case.kind], _DTYPES[options.dtype], options.phases, options.forms)
        if options.every:
            found = every_plan(case, ops[case.kind], _DTYPES[options.dtype], options.forms)
        for row in found:
            rows.append(row)
            print(row, flush=True)
            # a run that is cut short leaves what it has
            write(options.out, [dict(row) for row in rows])
        torch.cuda.empty_cache()
    print(table(rows))
    write(options.out, [dict(row) for row in rows])


def run(
    case: Case, op: ConvolutionOp, dtype: torch.dtype, phases: list[str], forms: list[str]
) -> Iterator[Row]:
    """torch.fft held against fp64 on a few channels, then ours against all of torch.fft's."""
    tensors = draw(case)
    theirs = measure(case, by_fft, tensors, phases, None)
    wide = {k: (x[:, :_SAMPLED] if x.dim() == 3 else x[:_SAMPLED]).double()
            for k, x in tensors.items()}  # fmt: skip
    off = {
        label: relative(found[:, :_SAMPLED] if found.dim() == 3 else found[:_SAMPLED], expected)
        for (label, found), expected in zip(
            theirs["found"].items(), results(by_fft, wide, phases).values(), strict=True
        )
    }
    oracle = theirs.pop("found")
    yield {
        "row": case.name, "who": "torch.fft fp32", "off": off,
        "right": all(value < _WRONG_FP32 for value in off.values()), **theirs,
    }  # fmt: skip
    own = {k: x.to(dtype) if x.dim() == 3 else x for k, x in tensors.items()}
    work = Workload(case.batch, case.tokens, case.tokens, case.channels, case.channels, case.tokens)
    for form in (None, *forms):
        row: Row = {"row": case.name, "who": "attnc", "form": form or "planned"}
        plan = op.plan(dtype=DTYPE_NAMES[dtype], form=form, workload=work)
        row["plan"] = [str(step) for step in plan.passes]
        try:
            measured = measure(case, calling(op, form), own, phases, oracle)
        except Exception as error:  # a form that cannot run is a result too
            yield {**row, "error": f"{type(error).__name__}: {error}"[:200]}
            continue
        measured.pop("found")
        yield {**row, **measured}


def every_plan(
    case: Case, op: ConvolutionOp, dtype: torch.dtype, forms: list[str]
) -> Iterator[Row]:
    """Each ranked forward plan of each form by itself, held against torch.fft's output."""
    tensors = draw(case)
    theirs = measure(case, by_fft, tensors, ["forward"], None)
    oracle = theirs.pop("found")
    yield {"row": case.name, "who": "torch.fft fp32", "right": True, **theirs}
    own = {k: x.to(dtype) if x.dim() == 3 else x for k, x in tensors.items()}
    work = Workload(case.batch, case.tokens, case.tokens, case.channels, case.channels, case.tokens)
    device = planner_device(torch.device("cuda"))
    for form in forms:
        name = DTYPE_NAMES[dtype]
        for plan in plans(op.request(None, name, form, False, device=device, workload=work)):
            row: Row = {"row": case.name, "who": "attnc", "form": form}
            row["plan"] = [str(step) for step in plan.passes]
            built = Built([plan], 0, store_plan(plan))

            def call(v: Tensor, built: Built = built, **given: Tensor) -> Tensor:
                views = [x.transpose(1, 2) if x.dim() == 3 else x
                         for x in (v, *(given[key] for key in op.tensor_names))]  # fmt: skip
                return launch(built, views[0], views)[0].transpose(1, 2)

            try:
                measured = measure(case, call, own, ["forward"], oracle)
            except Exception as error:  # a plan that cannot run is a result too
                yield {**row, "error": f"{type(error).__name__}: {error}"[:200]}
                continue
            measured.pop("found")
            yield {**row, **measured}


def draw(case: Case) -> dict[str, Tensor]:
    """fp32 tensors as torch.fft takes them: tokens [B, C, T], taps [C, T] that keep u's size."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device="cuda")

    shape = case.batch, case.channels, case.tokens
    found = {"v": normal(*shape), "w": normal(case.channels, case.tokens) / case.tokens**0.5}
    if case.kind == "gated":
        found |= {"a": normal(*shape), "g": normal(*shape)}
    return found | {"do": normal(*shape)}


def by_fft(v: Tensor, w: Tensor, a: Tensor | None = None, g: Tensor | None = None) -> Tensor:
    """What one writes with torch.fft: rfft, multiply, irfft, padded to twice the length."""
    tokens = v.shape[-1]
    u = v if a is None else v * a
    spectrum = torch.fft.rfft(u, n=2 * tokens) * torch.fft.rfft(w, n=2 * tokens)
    z = torch.fft.irfft(spectrum, n=2 * tokens)[..., :tokens]
    return z if g is None else z * g


def calling(op: ConvolutionOp, form: str | None) -> Call:
    """Ours on the same tensors: [B, T, C] views, not copied."""

    def call(v: Tensor, **tensors: Tensor) -> Tensor:
        views = {k: x.transpose(1, 2) if x.dim() == 3 else x for k, x in tensors.items()}
        return op(v.transpose(1, 2), form=form, **views).transpose(1, 2)

    return call


def results(call: Call, tensors: dict[str, Tensor], phases: list[str]) -> dict[str, Tensor]:
    """The output, and the gradients of all inputs where `both` is asked for."""
    given = {k: x.detach() for k, x in tensors.items() if k != "do"}
    if "both" not in phases:
        with torch.no_grad():
            return {"o": call(**given)}
    leaves = {k: x.requires_grad_() for k, x in given.items()}
    o = call(**leaves)
    gradients = torch.autograd.grad(o, list(leaves.values()), tensors["do"])
    return {"o": o.detach()} | {f"d{k}": x for k, x in zip(leaves, gradients, strict=True)}


def measure(
    case: Case, call: Call, tensors: dict[str, Tensor], phases: list[str],
    oracle: dict[str, Tensor] | None,
) -> Row:  # fmt: skip
    """Check where there is an oracle, then time each phase and see what memory it takes."""
    found = results(call, tensors, phases)
    row: Row = {"found": found}
    if oracle is not None:
        off = {label: relative(found[label], oracle[label]) for label in oracle}
        row |= {"off": off, "right": all(value < _WRONG for value in off.values())}
    given = {k: x for k, x in tensors.items() if k != "do"}
    if "forward" in phases:
        with torch.no_grad():
            row["forward"] = timed(lambda: call(**given))
    if "both" in phases:
        row["both"] = timed(lambda: results(call, tensors, ["both"]))
    return row


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """The median, and the most memory beyond what the inputs take."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    ms = do_bench(call, warmup=10, rep=60, return_mode="median")
    return {"ms": round(ms, 4), "peak_mb": round(peak / 1e6, 1)}


def relative(out: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected; zeros give 1."""
    difference = (out.to(expected.dtype) - expected).norm() / expected.norm()
    return round(float(difference), 7)


def table(rows: list[Row]) -> str:
    """One line a row of ours: time, and how many times faster than torch.fft and smaller."""
    lines = []
    for row in rows:
        if row.get("who") != "attnc":
            continue
        peer = next(other for other in rows if other["row"] == row["row"] and other is not row)
        text = f"{row['row']:14} {row['form']:9}"
        for phase in ("forward", "both"):
            if phase in row and phase in peer:
                own, theirs = row[phase], peer[phase]
                faster = theirs["ms"] / own["ms"]
                smaller = theirs["peak_mb"] / max(own["peak_mb"], 0.1)
                text += f" | {phase} {own['ms']:8.3f} ms {faster:5.2f}x, memory 1/{smaller:.1f}"
        lines.append(text + ("" if row.get("right") else f" | {row.get('error', 'WRONG')}"))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
