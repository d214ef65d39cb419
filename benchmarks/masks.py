"""Time that goes with what is kept: block-sparse tables, documents, first tokens with a window.

python -m benchmarks.masks OUT.json

A row's `share` is its pairs by those of the case that keeps all; `ratio` its time by that time
times the share: 1.0 where time is proportional to what is visible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from triton.testing import do_bench

from attnc.dsl import loads
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from benchmarks.record import write

TOKENS, HEADS, DIM = 16384, 16, 64
OPS = {
    name: compile_op(variant)
    for name, variant in loads(
        """
[full]
feature_map = "softmax"
scale = "rsqrt(d)"
[causal]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
[window]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & window(1023)"
[first_tokens]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(1023) | prefix(4))"
[blocks64]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "blocks(table, 64)"
inputs.table = { shape = ["h", "i/64", "j/64"] }
[blocks128]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "blocks(table, 128)"
inputs.table = { shape = ["h", "i/128", "j/128"] }
[documents]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }
"""
    ).items()
}


def table(size: int, density: float) -> Tensor:
    """As many kept blocks in every row and column of blocks, at different places a head."""
    count = TOKENS // size
    kept = max(1, round(density * count))
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(count, count)
    places = torch.randperm(count, generator=generator)[:kept]
    for row in range(count):
        first[row, (places + row) % count] = 1
    shuffled = [first[:, torch.randperm(count, generator=generator)] for _ in range(HEADS)]
    return torch.stack(shuffled).cuda()


def documents(length: int) -> Tensor:
    """Documents of one length."""
    return (torch.arange(TOKENS, device="cuda") // length).float()[None]


def cases() -> Iterator[tuple[str, str, dict[str, Tensor], float]]:
    """(op, what it keeps, tensors, pairs that are visible)."""
    whole = float(TOKENS) ** 2
    yield "full", "all", {}, whole
    for size in (64, 128):
        for density in (1.0, 0.5, 0.25, 0.1, 0.05):
            given = {"table": table(size, density)}
            pairs = float(given["table"].mean()) * whole
            yield f"blocks{size}", f"density {density}", given, pairs
    yield "causal", "all", {}, whole / 2
    for length in (TOKENS, 4096, 1024, 256):
        yield "documents", f"of {length}", {"ids": documents(length)}, TOKENS * length / 2
    yield "window", "1024", {}, TOKENS * 1024.0
    yield "first_tokens", "1024 and 4", {}, TOKENS * 1028.0


def timed(op: Op, given: dict[str, Tensor]) -> tuple[float, float]:
    """Milliseconds of a forward, and of a backward."""
    q, k, v = (
        torch.randn(1, TOKENS, HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    forward = do_bench(lambda: op(q, k, v, **given), warmup=10, rep=60, return_mode="median")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = op(*leaves, **given)
    do = torch.randn_like(out)
    backward = do_bench(
        lambda: torch.autograd.grad(out, leaves, do, retain_graph=True),
        warmup=10, rep=60, return_mode="median",
    )  # fmt: skip
    return forward, backward


def compile_all() -> None:
    """Every op's first calls at once: each compiles in processes of its own."""

    def first(name: str) -> None:
        given = next(given for op, _, given, _ in cases() if op == name)
        q, k, v = (
            torch.randn(1, TOKENS, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
            for _ in range(3)
        )
        OPS[name](*(x.requires_grad_() for x in (q, k, v)), **given).sum().backward()

    with ThreadPoolExecutor() as pool:
        list(pool.map(first, OPS))


def main() -> None:
    compile_all()
    rows: list[dict[str, object]] = []
    base: dict[str, tuple[float, float, float]] = {}
    for name, what, given, pairs in cases():
        forward, backward = timed(OPS[name], given)
        whole = base.setdefault(name, (pairs, forward, backward))
        share = pairs / whole[0]
        row = {
            "op": name, "keeps": what, "share": round(share, 4),
            "forward_ms": round(forward, 4), "backward_ms": round(backward, 4),
            "forward_ratio": round(forward / whole[1] / share, 3),
            "backward_ratio": round(backward / whole[2] / share, 3),
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    write(sys.argv[1], rows)


if __name__ == "__main__":
    main()
