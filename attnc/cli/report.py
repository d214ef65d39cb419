"""`attnc report`: everything that tuning saw, as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from math import log10
from pathlib import Path
from typing import Any

import jinja2

from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.tuning_store import TuningStore
from attnc.cli.screen import console
from attnc.cli.status import OK
from attnc.errors import UsageError

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 44


def report(output: Path) -> int:
    """Draw every run that the store keeps.

    Raises:
        UsageError: nothing was tuned here, or the file cannot be written.
    """
    runs = TuningStore().runs()
    if not runs:
        raise UsageError(
            "nothing was tuned here",
            hints=("attnc tune NAME --shape B,T,H,K,V measures something",),
        )
    try:
        write_atomically(output, page(runs).encode())
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    console().print(f"{len(runs)} tuned kernels in {output}", soft_wrap=True)
    return OK


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The HTML of all runs; what users named is escaped."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    text = (files("attnc") / "cli" / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(runs=[_drawn(run) for run in runs])


def _drawn(run: dict[str, Any]) -> dict[str, Any]:
    timed = [trial for trial in run["trials"] if trial["ms"]]
    best = min(trial["ms"] for trial in timed)
    return {
        **run,
        "best_ms": best,
        "tflops": run["flops"] / best / 1e9,
        "floor_ms": max(
            run["hbm_bytes"] / run["peak_tbps"] / 1e9, run["flops"] / run["peak_tflops"] / 1e9
        ),
        "roofline": _roofline(run, timed),
        "predicted": _predicted(timed),
        "bars": _bars(run),
        "trials": sorted(run["trials"], key=lambda t: t["ms"] or float("inf")),
    }


def _roofline(run: dict[str, Any], timed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both axes logarithmic: FLOP a byte, and TFLOP/s."""
    intensity = run["flops"] / max(1, run["hbm_bytes"])
    ridge = run["peak_tflops"] / run["peak_tbps"]
    speeds = [run["flops"] / trial["ms"] / 1e9 for trial in timed]
    x = _Axis(min(intensity, ridge) / 10, max(intensity, ridge) * 10, _WIDTH)
    y = _Axis(min(speeds) / 3, run["peak_tflops"] * 2, _HEIGHT)
    left = run["peak_tbps"] * x.low
    roof = [(x.low, left), (ridge, run["peak_tflops"]), (x.high, run["peak_tflops"])]
    return {
        "roof": " ".join(f"{x.place(a):.1f},{_HEIGHT - y.place(b):.1f}" for a, b in roof),
        "points": [(x.place(intensity), _HEIGHT - y.place(speed)) for speed in speeds],
        "intensity": intensity,
    }


def _predicted(timed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both axes logarithmic and alike, so that the diagonal is a perfect prediction."""
    pairs = [(trial["predicted_us"] / 1e3, trial["ms"]) for trial in timed]
    sizes = [size for pair in pairs for size in pair if size > 0]
    low, high = min(sizes) / 2, max(sizes) * 2
    x, y = _Axis(low, high, _WIDTH), _Axis(low, high, _HEIGHT)
    points = [(x.place(max(a, low)), _HEIGHT - y.place(b)) for a, b in pairs]
    return {"points": points, "low": low, "high": high}


def _bars(run: dict[str, Any]) -> list[dict[str, Any]]:
    """SRAM a buffer, as a share of the budget."""
    return [
        {**buffer, "share": 100 * buffer["bytes"] / run["budget"]}
        for buffer in run["buffers"] if buffer["bytes"]
    ]  # fmt: skip


class _Axis:
    """A logarithmic axis of so many pixels."""

    def __init__(self, low: float, high: float, pixels: int) -> None:
        self.low, self.high, self._pixels = low, high, pixels

    def place(self, value: float) -> float:
        """Where a value stands, from the margin on."""
        share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return _MARGIN / 2 + share * (self._pixels - _MARGIN)
