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

from attnc.autotune.tuning_journal import TuningJournal
from attnc.autotune.worker_process import WorkerDied, WorkerProcess

_MODULE = "attnc.autotune.measure_worker"
_ROUNDS, _REPEATS = 5, 5
# however noisy a device is, what is slower by more than this does not win
_TIE = 0.02


@dataclass(slots=True)
class Trial:
    """One candidate: its emitted module, its text, and what became of it.

    On a GPU the module is a launcher of `kernels`, entries as a manifest has them. `label` is the
    pass that it varies, for lists; `footprint` is its SRAM in bytes; `problem` says why it has no
    time.
    """

    path: Path
    text: str
    label: str
    predicted_us: float
    footprint: int
    spills: int | None = None
    kernels: list[dict[str, Any]] = field(default_factory=list)
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
    """A worker with inputs on a device; started again whenever a candidate takes it down.

    The worker starts at once, so that it is ready when the inputs are: `load` names their file.
    """

    def __init__(self, device: str, *, timeout_s: float = 30.0) -> None:
        self._device, self._timeout_s = device, timeout_s
        self._inputs: Path | None = None
        self._worker: WorkerProcess | None = self._start()

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

    def load(self, inputs: Path) -> None:
        """Take the arguments, expected outputs and bounds of a file for all that follows."""
        self._inputs = inputs
        if self._worker is not None and self._worker.alive:
            self._worker.ask({"ask": "load", "inputs": str(inputs)})

    def time(
        self,
        trials: Sequence[Trial],
        function: str,
        *,
        until: float,
        rounds: int = _ROUNDS,
        repeats: int = _REPEATS,
        show: Shown | None = None,
        journal: TuningJournal | None = None,
    ) -> None:
        """Sample all trials in turn, round after round, until the clock (`time.monotonic`) says so.

        A round that is begun is finished, so that every candidate has as many samples. What a
        journal knows is not measured again.
        """
        for number in range(rounds):
            if number and time.monotonic() > until:
                return
            for trial in trials:
                if trial.problem or len(trial.samples) >= (number + 1) * repeats:
                    continue
                request = {"ask": "sample", "path": str(trial.path), "function": function,
                           "repeats": repeats, "kernels": trial.kernels}  # fmt: skip
                reply = self._ask(request, timeout_s=self._timeout_s)
                trial.problem = str(reply.get("error") or reply.get("wrong") or "")
                samples = reply.get("ms", [])
                trial.samples += samples
                if journal is not None:
                    journal.note(trial, samples)
                if show is not None:
                    show(trials)

    def _start(self) -> WorkerProcess:
        environment = {"TRITON_INTERPRET": "1" if self._device == "cpu" else None}
        return WorkerProcess(_MODULE, [self._device], environment)

    def _ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self._worker is None or not self._worker.alive:
            self._worker = self._start()
            if self._inputs is not None:
                self._worker.ask({"ask": "load", "inputs": str(self._inputs)})
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
