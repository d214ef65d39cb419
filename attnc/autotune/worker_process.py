"""A worker as its parent sees it: started, asked, and seen to die."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attnc

_TAIL_BYTES = 16_384
_TAIL_LINES = 12
_PATIENCE_S = 5.0


class WorkerDied(Exception):
    """A worker ended before it answered; `reason` says how, `tail` is the end of its stderr."""

    def __init__(self, reason: str, tail: tuple[str, ...], code: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.tail = tail
        self.code = code


class WorkerProcess:
    """One `python -m MODULE` that answers one request at a time.

    Started with -m and no multiprocessing, so the parent's script needs no __main__ guard and may
    be a notebook; its environment is the parent's with `environment` over it, None to unset.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str | None]
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # Windows has no such module, and imports this one to plan
        import fcntl

        # appending, so that the file may be emptied between requests
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, os.O_APPEND)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(environment),
            encoding="utf-8",
            # Ctrl-C is the parent's to handle: it stops the worker itself
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer.

        Raises: WorkerDied where there is none; the worker is stopped on every other exception.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None, "the worker's pipes are open"
        try:
            self._stderr.truncate(0)
            try:
                stdin.write(json.dumps(request) + "\n")
                stdin.flush()
            except BrokenPipeError:
                raise self._died() from None
            line = stdout.readline()
            if not line.endswith("\n"):
                raise self._died()
            reply: dict[str, Any] = json.loads(line)
            return reply
        except BaseException:
            # interrupted between question and answer, the pipes would be out of step
            self.kill()
            raise

    def tail(self) -> tuple[str, ...]:
        """The last lines that the worker wrote to stderr since it was last asked."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        text = self._stderr.read().decode("utf-8", errors="replace")
        return tuple(line for line in text.splitlines() if line.strip())[-_TAIL_LINES:]

    def close(self) -> None:
        """End the worker: it leaves when its stdin does, and is killed if it does not."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_files()

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()
        self._process.wait()
        self._close_files()

    def stop(self) -> None:
        """End the process from another thread: whoever asks sees it die."""
        self._process.kill()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's worker, without a word to it."""
        for pipe in (self._process.stdin, self._process.stdout):
            # the raw file: closing the buffered one could send half a request a second time
            buffered = cast(io.TextIOWrapper, pipe).buffer
            cast(io.BufferedWriter | io.BufferedReader, buffered).raw.close()
        # a child reaps no worker of its parent's, and must not try when this object goes
        self._process.returncode = 0

    def _close_files(self) -> None:
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _died(self) -> WorkerDied:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return WorkerDied(_how_it_ended(code), self.tail(), code)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The parent's environment, changed, with its sys.path as PYTHONPATH."""
    environment = dict(os.environ)
    environment.pop("PYTHONINSPECT", None)
    own = str(Path(attnc.__file__).resolve().parents[1])
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    if own not in entries:
        entries.insert(0, own)
    environment["PYTHONPATH"] = os.pathsep.join(entries)
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return environment
