"""The state family beside its peers: every timed call checked, times, ratios and floors.

python -m benchmarks.state OUT.json [--rows PREFIX ...] [--phases forward backward]
    [--only-ours] [--peer-dims N] [--seconds N]

A row is named group/variant/B-T-H-K-V and chosen by how its name starts. Peers that tune
themselves take minutes at K = 128: --peer-dims leaves out those of wider heads. What `--seconds`
cut is listed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

import attnc
from benchmarks.record import write
from benchmarks.state_cases import Case, cases, draw, peers, variants
from benchmarks.state_oracle import errors

# relative error in bf16 that is more than rounding; a wrong tile or sign gives tenths
_WRONG = 0.02
_GRADIENTS = ("dq", "dk", "dv")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--rows", nargs="*", default=[""])
    parser.add_argument("--phases", nargs="*", default=["forward", "backward"])
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--peer-dims", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    start = time.monotonic()
    rows: list[Row] = []
    for case in cases():
        if not case.name.startswith(tuple(options.rows)):
            continue
        if time.monotonic() - start > options.seconds:
            rows.append({"row": case.name, "cut": "the clock"})
            continue
        with_peers = not options.only_ours and case.dims[0] <= options.peer_dims
        for row in run(case, options.phases, with_peers=with_peers):
            rows.append(row)
            print(row, flush=True)
            # a run that is cut short leaves what it has
            write(options.out, [dict(row) for row in rows])
        torch.cuda.empty_cache()
    print(table(rows))
    write(options.out, [dict(row) for row in rows])


def run(case: Case, phases: list[str], *, with_peers: bool) -> Iterator[Row]:
    """Ours, then each peer: errors against the oracle, times, and what they are of the floor."""
    tensors, declared = draw(case)
    op = attnc.compile(variants()[case.variant])
    runs: dict[str, Callable[..., Tensor]] = {
        "attnc": lambda q, k, v: op(q, k, v, **declared),
    }
    if case.variant == "based":
        # a call's length chooses between these two
        runs |= {
            f"attnc {form}": lambda q, k, v, form=form: op(q, k, v, form=form)
            for form in ("parallel", "chunked")
        }
    if with_peers:
        runs |= peers(case, declared)
    for who, call in runs.items():
        row: Row = {"row": case.name, "who": who}
        try:
            row |= measure(case, call, tensors, declared, phases)
        except Exception as error:  # a peer that cannot run is a result too
            row["error"] = f"{type(error).__name__}: {error}"[:200]
        yield row


def measure(
    case: Case,
    call: Callable[..., Tensor],
    tensors: list[Tensor],
    declared: dict[str, Tensor],
    phases: list[str],
) -> Row:
    """Check, then time, each phase."""
    q, k, v, do = tensors
    found: dict[str, Tensor] = {}
    backward: Callable[[], tuple[Tensor, ...]] | None = None
    if "backward" in phases:
        leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
        o = call(*leaves)
        found["o"] = o.detach()

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(o, leaves, do, retain_graph=True)

        found |= dict(zip(_GRADIENTS, backward(), strict=True))
    with torch.no_grad():
        found["o"] = call(q, k, v)
    off = errors(case.variant, tensors, declared, found)
    row: Row = {"off": {name: round(value, 5) for name, value in off.items()}}
    row["right"] = all(value < _WRONG for value in off.values())
    if "forward" in phases:
        with torch.no_grad():
            row["forward"] = _timed(lambda: call(q, k, v), case.floor_ms("forward"))
    if backward is not None:
        row["backward"] = _timed(backward, case.floor_ms("backward"))
    return row


def _timed(call: Callable[[], Any], floor: float) -> dict[str, float]:
    ms = do_bench(call, warmup=20, rep=80, return_mode="median")
    return {"ms": round(ms, 4), "floor_ms": round(floor, 4), "x_floor": round(ms / floor, 2)}


def table(rows: list[Row]) -> str:
    """One line a row of ours, with the fastest peer's time over it."""
    lines = []
    for row in rows:
        if row.get("who") != "attnc":
            continue
        text = f"{row['row']:40}"
        for phase in ("forward", "backward"):
            if phase not in row:
                continue
            others = [other for other in rows if other["row"] == row["row"]]
            others = [other for other in others if not other["who"].startswith("attnc")]
            theirs = [other[phase]["ms"] for other in others if phase in other]
            own = row[phase]
            ratio = f" {min(theirs) / own['ms']:5.2f}x of peer" if theirs else ""
            text += f" | {phase[0]} {own['ms']:7.4f} ms {own['x_floor']:5.2f}x floor{ratio}"
        lines.append(text + ("" if row.get("right") else f" | {row.get('error', 'WRONG')}"))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
