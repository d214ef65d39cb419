"""What a tuning run has measured so far, on disk: one that was killed goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.autotune.measure import Trial


class TuningJournal:
    """One line a measurement of one run; the path names all that makes runs comparable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[list[float], str]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                row = json.loads(line)
                samples, _ = self._known.get(row["candidate"], ([], ""))
                found = ([*samples, *row["ms"]], row["problem"])
                self._known[row["candidate"]] = found
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the run was killed

    def recall(self, trial: Trial) -> None:
        """Give a trial what was measured of it before."""
        samples, problem = self._known.get(trial.path.name, ([], ""))
        trial.samples, trial.problem = [*samples], trial.problem or problem

    def note(self, trial: Trial, samples: list[float]) -> None:
        """Write down what was just measured."""
        row = {"candidate": trial.path.name, "ms": samples, "problem": trial.problem}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """The run is over, and its answer is in the store."""
        self.path.unlink(missing_ok=True)
