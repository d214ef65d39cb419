"""Time the backward beside its peers, each result checked; --sweep tries candidates pass by pass.

python -m benchmarks.backward OUT.json [--cases N ...] [--sweep TOP]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

import attnc
from attnc.autotune.first_call import compile_passes
from attnc.autotune.module_cache import load_module, store_module
from attnc.codegen.plan import Plan, Workload
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.ops.op import Op
from attnc.ops.shipped import shipped
from benchmarks.record import write


@dataclass(frozen=True)
class Case:
    """One timed shape; `bytes` is what a backward must move: inputs, do, and three gradients."""

    name: str
    batch: int
    tokens: int
    heads: int
    dims: tuple[int, int]

    @property
    def floor_ms(self) -> float:
        qk, v = self.dims
        return self.batch * self.tokens * self.heads * (4 * qk + 3 * v) * 2 / 3.0e12 * 1e3


CASES = (
    Case("lightning", 32, 1024, 32, (64, 64)),
    Case("lightning", 8, 4096, 16, (128, 128)),
    Case("lightning", 2, 16384, 16, (128, 128)),
    Case("based", 8, 4096, 16, (16, 64)),
    Case("linear", 8, 4096, 32, (64, 64)),
    Case("flash", 4, 4096, 16, (128, 128)),
    Case("flash", 4, 4096, 32, (64, 64)),
    Case("flash_softcap", 4, 4096, 16, (128, 128)),
)


def tensors(case: Case) -> list[Tensor]:
    """q, k, v and do, fresh."""
    qk, v = case.dims
    made = [
        torch.randn(case.batch, case.tokens, case.heads, dim, device="cuda", dtype=torch.bfloat16)
        for dim in (qk, qk, v, v)
    ]
    made[1] /= qk**0.5
    return made


def backward_of(
    forward: Callable[..., Tensor], x: list[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs the backward of one forward again and again."""
    leaves = [t.detach().clone().requires_grad_() for t in x[:3]]
    out = forward(*leaves)
    return lambda: torch.autograd.grad(out, leaves, x[3].view_as(out), retain_graph=True)


def peers(case: Case, slopes: Tensor) -> dict[str, Callable[..., Tensor]]:
    """What a user would run instead, by name."""
    if case.name == "lightning":
        from fla.ops.simple_gla import chunk_simple_gla

        return {"fla": lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=-slopes, scale=1.0)[0]}
    if case.name == "based":
        from fla.ops.based import fused_chunk_based, parallel_based

        return {
            "fla fused": lambda q, k, v: _flat(fused_chunk_based(q, k, v, use_norm=True)),
            "fla parallel": lambda q, k, v: _flat(parallel_based(q, k, v, use_norm=True)),
        }
    if case.name == "flash":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                heads_first = (t.transpose(1, 2) for t in (q, k, v))
                return torch.nn.functional.scaled_dot_product_attention(
                    *heads_first, is_causal=True
                ).transpose(1, 2)

        return {"cudnn": cudnn}
    return {}


def _flat(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def run(case: Case) -> Iterable[dict[str, object]]:
    """Forward and backward of ours and of each peer."""
    op = attnc.compile(shipped()[case.name])
    slopes = torch.exp2(-torch.arange(1, case.heads + 1, device="cuda") / case.heads * 8).float()
    extra = {d.name: slopes for d in op.variant.params}
    x = tensors(case)
    ours = lambda q, k, v: op(q, k, v, **extra)  # noqa: E731
    mine = backward_of(ours, x)
    found = mine()
    with torch.no_grad():
        forward_ms = do_bench(lambda: ours(*x[:3]), return_mode="median")
    row = {
        "case": case.name, "shape": [case.batch, case.tokens, case.heads, *case.dims],
        "who": "attnc", "forward_ms": round(forward_ms, 4),
        "backward_ms": round(do_bench(mine, return_mode="median"), 4),
        "floor_ms": round(case.floor_ms, 4), "passes": kernel_ms(mine),
        "repeat_equal": all(torch.equal(a, b) for a, b in zip(found, mine(), strict=True)),
    }  # fmt: skip
    yield row
    for name, forward in peers(case, slopes).items():
        row = {"case": case.name, "shape": [case.batch, case.tokens, case.heads, *case.dims]}
        row["who"] = name
        try:
            theirs = backward_of(forward, x)
            other = theirs()
            row["difference"] = [round(_apart(a, b), 5) for a, b in zip(found, other, strict=True)]
            with torch.no_grad():
                ahead = lambda run=forward: run(*x[:3])  # noqa: E731
                row["forward_ms"] = round(do_bench(ahead, return_mode="median"), 4)
            row["backward_ms"] = round(do_bench(theirs, return_mode="median"), 4)
        except Exception as error:  # a peer that cannot run is a result too
            row["error"] = f"{type(error).__name__}: {error}"[:200]
        yield row


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-20))


def kernel_ms(call: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Milliseconds of each kernel in one call, from the profiler."""
    call()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    total: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        total[event.key[-60:]] += event.self_device_time_total / 1000 / repeats
    return {name: round(ms, 4) for name, ms in total.items() if ms > 0.001}


def sweep(case: Case, top: int) -> Iterable[dict[str, object]]:
    """The first candidates of every ranked pass, each alone beside the first of all others."""
    op = attnc.compile(shipped()[case.name], device="h100")
    slopes = torch.exp2(-torch.arange(1, case.heads + 1, device="cuda") / case.heads * 8).float()
    q, k, v, do = tensors(case)
    work = Workload(case.batch, case.tokens, case.tokens, case.heads, case.heads)
    request = op.request(case.dims, "bf16", None, False, workload=work)
    ranked = plans(replace(request, phase="backward", wanted=()))
    arguments = [q, k, v, *[slopes for _ in op.variant.params], *_kept(op, q, k, v, slopes), do]
    if op.softmax:
        arguments.append(torch.zeros(case.batch, case.heads, case.tokens, device="cuda"))
    trials: list[tuple[str, str, Plan]] = []
    for place in range(len(ranked[0].passes)):
        steps = list(dict.fromkeys(plan.passes[place] for plan in ranked))
        if len(steps) > 1:
            for step in steps[:top]:
                passes = (*ranked[0].passes[:place], step, *ranked[0].passes[place + 1 :])
                trials.append((step.kernel.name, str(step), replace(ranked[0], passes=passes)))

    def build(trial: tuple[str, str, Plan]) -> Any:
        module = load_module(store_module(render(trial[2]), f"sweep_{case.name}"))
        try:
            compile_passes(module, "backward", arguments, q.device)
        except Exception as error:
            return error
        return module

    with ThreadPoolExecutor(12) as pool:
        modules = list(pool.map(build, trials))
    truth = None
    for (name, text, _), module in zip(trials, modules, strict=True):
        row: dict[str, object] = {"case": case.name, "dims": case.dims, "pass": name, "plan": text}
        if isinstance(module, Exception):
            yield {**row, "error": str(module)[:120]}
            continue
        result = module.backward(*arguments)
        torch.cuda.synchronize()
        truth = truth or result
        row["apart"] = max(round(_apart(a, b), 5) for a, b in zip(result, truth, strict=True))
        times = kernel_ms(lambda: module.backward(*arguments), 3)  # noqa: B023
        row["ms"] = next((ms for key, ms in times.items() if key.endswith(f"_{name}")), None)
        yield row


def _kept(op: Op, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> list[Tensor]:
    if not op.keeps_row_sums:
        return []
    given = [slopes for _ in op.variant.params]
    return op.forward(q, k, v, given, None, None, "fp32")[:2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))))
    parser.add_argument("--sweep", type=int, default=0)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for number in options.cases:
        case = CASES[number]
        for row in sweep(case, options.sweep) if options.sweep else run(case):
            rows.append(row)
            print(row, flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
