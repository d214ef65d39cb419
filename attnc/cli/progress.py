"""A progress bar on standard error, for what takes longer than two seconds."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attnc.cli.screen import console

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE_S = 2.0


class Waiting:
    """Draws nothing before two seconds have passed, and nothing at all where no terminal is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = 0
        self._total: int | None = None
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if console(stderr=True).is_terminal:
            self._timer = threading.Timer(_PATIENCE_S, self._draw)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar is not None:
                self._bar.stop()

    def update(self, done: int, total: int, what: str | None = None) -> None:
        """So many of so many are done; `what` is what comes next."""
        with self._lock:
            self._done, self._total = done, total
            self._what = self._what if what is None else what
            if self._bar is not None:
                task = self._bar.task_ids[0]
                self._bar.update(task, completed=done, total=total, description=self._what)

    def _draw(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), Elapsed())
        with self._lock:
            # the work may have ended while the timer went off
            if self._timer is None:
                return
            self._bar = Progress(*columns, console=console(stderr=True), transient=True)
            self._bar.add_task(self._what, completed=self._done, total=self._total)
            self._bar.start()
