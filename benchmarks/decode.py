"""Memory bandwidth of a decode step, beside a copy's and the steps of others.

python -m benchmarks.decode OUT.json

Each figure is the median over replays of a CUDA graph of one step on each of several states, which
together are larger than the L2 cache; bytes are those of the keys and values that a row sees, or
of the state read and written, or of both for a sum of terms, whose step is to cost the same after
any number of tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import attnc
from attnc.ops.shipped import shipped
from benchmarks.record import write

BATCHES = (1, 64, 128)
TOKENS, SPARE = 2048, 64
# (variant, query heads, key/value heads, K, V)
CACHES = (("flash", 16, 16, 64, 64), ("flash", 32, 8, 128, 128), ("flash_window", 16, 16, 64, 64))
STATES = (("lightning", 32, 32, 64, 64), ("linear", 32, 32, 64, 64), ("based", 16, 16, 16, 64))
SUMS = (("window_taylor", 16, 16, 16, 64),)
_BEYOND_L2 = 256 << 20
_MOST_STATES = 40


def graph_us(calls: Sequence[Callable[[], Any]], replays: int = 20) -> float:
    """Microseconds a call, of a CUDA graph that holds all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    found = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(found)


def row(case: str, batch: int, nbytes: float, us: float, **facts: Any) -> dict[str, Any]:
    """One measured step."""
    rate = nbytes / us * 1e-3
    return {"case": case, "batch": batch, **facts, "us": round(us, 2), "gb_per_s": round(rate, 1)}


def copy_ceiling() -> dict[str, Any]:
    """What a copy of one GiB reads and writes a second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = graph_us([lambda: target.copy_(source)])
    return row("copy", 1, 2.0 * source.numel(), us)


def token(batch: int, hq: int, hkv: int, qk: int, v: int) -> list[torch.Tensor]:
    """q, k and v of one token."""
    sizes = ((hq, qk), (hkv, qk), (hkv, v))
    return [
        torch.randn(batch, 1, h, d, device="cuda", dtype=torch.bfloat16) * 0.5 for h, d in sizes
    ]


def copies(nbytes: int) -> int:
    """How many states of a size are beyond the L2 cache together."""
    return max(1, min(_MOST_STATES, ceil(_BEYOND_L2 / nbytes)))


def cache_rows(
    name: str, heads: tuple[int, int], dims: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Steps over caches of 2,048 tokens, and PyTorch's attention over tensors of them."""
    op = attnc.compile(shipped()[name])
    for batch in BATCHES:
        q, k, v = token(batch, *heads, *dims)
        nbytes = batch * heads[1] * TOKENS * sum(dims) * 2
        states = []
        for _ in range(copies(nbytes)):
            state = op.init_state(batch, heads, dim=dims, capacity=TOKENS + SPARE)
            state.keys.normal_()
            state.values.normal_()
            state.lengths.fill_(TOKENS - 1)
            state.tokens = TOKENS - 1
            states.append(state)
        us = graph_us([partial(op.step, q, k, v, s) for s in states])
        facts = {"heads": heads, "dims": dims, "states": len(states)}
        yield row(name, batch, nbytes, us, **facts)
        rows = q.transpose(1, 2)
        # a prefix of a cache, heads outermost as PyTorch wants them
        pairs = [
            (s.keys.transpose(1, 2)[:, :, :TOKENS], s.values.transpose(1, 2)[:, :, :TOKENS])
            for s in states
        ]
        sdpa = partial(scaled_dot_product_attention, rows, enable_gqa=heads[0] != heads[1])
        us = graph_us([partial(sdpa, key=a, value=b) for a, b in pairs])
        yield row(f"sdpa beside {name}", batch, nbytes, us, **facts)
        del states, pairs
        torch.cuda.empty_cache()


def state_rows(
    name: str, heads: tuple[int, int], dims: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Steps of a state, and fla's where it is installed."""
    op = attnc.compile(shipped()[name])
    slope = torch.rand(heads[0], device="cuda") * 0.2
    extra = {"slope": slope} if op.variant.params else {}
    for batch in BATCHES:
        q, k, v = token(batch, *heads, *dims)
        first = op.init_state(batch, heads, dim=dims)
        states = [first, *(first.clone() for _ in range(copies(first.nbytes) - 1))]
        us = graph_us([partial(op.step, q, k, v, s, **extra) for s in states])
        facts = {"heads": heads, "dims": dims, "states": len(states)}
        yield row(name, batch, 2.0 * first.nbytes, us, **facts)
        peer = fla_step()
        if peer is not None and name == "lightning":
            gate = (-slope).expand(batch, 1, -1).contiguous()
            peer = partial(peer, q, k, v, gate, output_final_state=True)
            us = graph_us([partial(peer, initial_state=s.matrix) for s in states])
            yield row(f"fla beside {name}", batch, 2.0 * first.nbytes, us, **facts)
        del states
        torch.cuda.empty_cache()


def sum_rows(name: str, heads: tuple[int, int], dims: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Steps of a ring beside a state, after few tokens and after many."""
    op = attnc.compile(shipped()[name])
    extra = {tensor.name: torch.zeros(heads[0], device="cuda") for tensor in op.variant.params}
    for batch in BATCHES:
        q, k, v = token(batch, *heads, *dims)
        for tokens in (TOKENS, 32 * TOKENS):
            first = op.init_state(batch, heads, dim=dims)
            first.cache.keys.normal_()
            first.cache.values.normal_()
            first.lengths.fill_(tokens)
            nbytes = first.cache.nbytes + 2.0 * first.matrix.nbytes
            states = [first, *(first.clone() for _ in range(copies(nbytes) - 1))]
            us = graph_us([partial(op.step, q, k, v, s, **extra) for s in states])
            facts = {"heads": heads, "dims": dims, "states": len(states), "tokens": tokens}
            yield row(name, batch, nbytes, us, **facts)
            del states
            torch.cuda.empty_cache()


def fla_step() -> Callable[..., Any] | None:
    """fla's recurrent step with a gate a token, None where fla is not installed."""
    try:
        from fla.ops.simple_gla import fused_recurrent_simple_gla
    except ImportError:
        return None
    return fused_recurrent_simple_gla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    output = parser.parse_args().output
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [copy_ceiling()]
        ceiling = rows[0]["gb_per_s"]
        print(rows[0], flush=True)
        for found, cases in ((cache_rows, CACHES), (state_rows, STATES), (sum_rows, SUMS)):
            for name, hq, hkv, qk, v in cases:
                for item in found(name, (hq, hkv), (qk, v)):
                    item["of_copy"] = round(item["gb_per_s"] / ceiling, 3)
                    rows.append(item)
                    print(item, flush=True)
    write(output, rows)


if __name__ == "__main__":
    main()
