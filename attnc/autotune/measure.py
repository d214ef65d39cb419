"""Candidates timed in a process of their own, interleaved, each checked before its time counts."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attnc.autotune.worker_process import WorkerDied, WorkerProcess

_MODULE = "attnc.autotune.measure_worker"
_ROUNDS, _REPEATS = 5, 5
# however noisy a device is, what is slower by more than this does not win
_TIE = 0.02


@dataclass(slots=True)
class Trial:
    """One candidate: its emitted module, its text, and what became of it.

    `label` is the pass that it varies, for lists; `footprint` is its SRAM in bytes; `problem` says
    why it has no time.
    """

    path: Path
    text: str
    label: str
    predicted_us: float
    footprint: int
    spills: int | None = None
    samples: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def ms(self) -> float:
        """The median of its samples."""
        return statistics.median(self.samples)

    @property
    def noise(self) -> float:
        """Half the spread between its quartiles, as a share of the median."""
        if len(self.samples) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.ms


Shown = Callable[[Sequence[Trial]], None]


class Bench:
    """A worker with inputs on a device; started again whenever a candidate takes it down."""

    def __init__(self, device: str, inputs: Path, *, timeout_s: float = 30.0) -> None:
        self._device, self._inputs, self._timeout_s = device, inputs, timeout_s
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None and self._worker.alive:
            self._worker.close()

    def compile(self, trials: Sequence[Trial], function: str) -> None:
        """Compile all side by side; where that takes the worker down, one by one."""
        left = [trial for trial in trials if not trial.problem]
        for group in ([left], [[trial] for trial in left]):
            done = True
            for part in group:
                reply = self._ask(
                    {"ask": "compile", "paths": [str(t.path) for t in part], "function": function},
                    # a compiler takes seconds where a kernel takes none
                    timeout_s=self._timeout_s * 4,
                )
                if "figures" not in reply:
                    done = False
                    if len(part) == 1:
                        part[0].problem = str(reply["error"])
                    continue
                for trial, figures in zip(part, reply["figures"], strict=True):
                    trial.problem = figures.get("error", "")
                    trial.spills = figures.get("spills")
                    trial.footprint = figures.get("shared", trial.footprint)
            if done:
                return

    def time(
        self,
        trials: Sequence[Trial],
        function: str,
        *,
        until: float,
        rounds: int = _ROUNDS,
        repeats: int = _REPEATS,
        show: Shown | None = None,
    ) -> None:
        """Sample all trials in turn, round after round, until the clock (`time.monotonic`) says so.

        A round that is begun is finished, so that every candidate has as many samples.
        """
        for number in range(rounds):
            if number and time.monotonic() > until:
                return
            for trial in trials:
                if trial.problem:
                    continue
                request = {"ask": "sample", "path": str(trial.path), "function": function,
                           "repeats": repeats}  # fmt: skip
                reply = self._ask(request, timeout_s=self._timeout_s)
                trial.problem = str(reply.get("error") or reply.get("wrong") or "")
                trial.samples += reply.get("ms", [])
                if show is not None:
                    show(trials)

    def _ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self._worker is None or not self._worker.alive:
            environment = {"TRITON_INTERPRET": "1" if self._device == "cpu" else None}
            self._worker = WorkerProcess(_MODULE, [self._device, str(self._inputs)], environment)
        late = threading.Event()

        def expire(worker: WorkerProcess) -> None:
            late.set()
            worker.stop()

        timer = threading.Timer(timeout_s, expire, (self._worker,))
        timer.start()
        try:
            return self._worker.ask(request)
        except WorkerDied as death:
            if late.is_set():
                return {"error": f"took longer than {timeout_s:.0f} s"}
            last = death.tail[-1] if death.tail else ""
            return {"error": f"took its worker down, which {death.reason}: {last}"[:300]}
        finally:
            timer.cancel()


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The fastest; of those within its noise, 2% at most, the one with the smallest footprint."""
    timed = [trial for trial in trials if trial.samples and not trial.problem]
    if not timed:
        return None
    best = min(timed, key=lambda trial: trial.ms)
    tie = 1 + min(best.noise, _TIE)
    near = [trial for trial in timed if trial.ms <= best.ms * tie]
    return min(near, key=lambda trial: (trial.footprint, trial.ms))
