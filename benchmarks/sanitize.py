"""Launch every gluon kernel once, at small ragged shapes, for compute-sanitizer to watch.

python -m benchmarks.sanitize                                        # fills the caches
compute-sanitizer --tool memcheck  --error-exitcode 9 python -m benchmarks.sanitize
compute-sanitizer --tool racecheck --error-exitcode 9 python -m benchmarks.sanitize --brief

Forward and backward, head dims 64 and 128, plain and persistent programs; `--brief` takes one
variant and one shape of each. It prints what it launched, and checks nothing itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.dsl import loads
from attnc.ops.built import store_plan
from attnc.ops.op import compile as compile_op

VARIANTS = loads(
    """
[causal]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"

[banded]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 20)"
mask = "window(70) & (j < 200)"
"""
)
# query and key tokens
SHAPES = ((130, 130), (60, 200))
HEADS, KEY_HEADS = 4, 2


def chosen(*, brief: bool) -> Iterator[tuple[str, Plan]]:
    """Each kernel by name: the first plain and the first persistent forward, the first backward."""
    for name, variant in list(VARIANTS.items())[: 1 if brief else None]:
        op = compile_op(variant, backend="gluon")
        for dim in (64, 128):
            forward = plans(op.request((dim, dim), "bf16", None, False))
            for persistent in (False, True):
                plan = next(p for p in forward if ("P" in p.passes[0].tile) == persistent)
                yield f"{name} forward D={dim}{' persistent' if persistent else ''}", plan
            request = of_phase(op.request((dim, dim), "bf16", None, False), "backward")
            yield f"{name} backward D={dim}", plans(request)[0]


def launch(plan: Plan, tq: int, tk: int) -> None:
    """One launch on random tensors."""
    dim = plan.dims[0]
    q, o, do = (
        torch.randn(1, tq, HEADS, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    k, v = (
        torch.randn(1, tk, KEY_HEADS, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    module = load_module(store_plan(plan))
    if plan.phase == "forward":
        module.forward(q, k, v)
    else:
        lse = torch.randn(1, HEADS, tq, device="cuda").abs() + 5
        module.backward(q, k, v, o, lse, do, torch.randn_like(lse))
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brief", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for name, plan in chosen(brief=options.brief):
        for tq, tk in SHAPES[: 1 if options.brief else None]:
            launch(plan, tq, tk)
            print(f"launched {name}, {tq} queries of {tk} keys", flush=True)


if __name__ == "__main__":
    main()
