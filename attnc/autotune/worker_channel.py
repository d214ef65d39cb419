"""A worker's end of its pipes: one JSON message a line in, one a line out."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TextIO


class WorkerChannel:
    """The pipes of this worker, taken away from everything else that runs in it."""

    def __init__(self, requests: TextIO, replies: TextIO, at_end: Callable[[], None]) -> None:
        self._requests = requests
        self._replies = replies
        self._at_end = at_end
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    def take_over(cls, at_end: Callable[[], None] = lambda: None) -> WorkerChannel:
        """Keep stdin and stdout for messages: others' prints go to stderr, and they read nothing.

        The process ends when its stdin does, even in the midst of a request; `at_end` runs first.
        """
        requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
        replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        return cls(requests, replies, at_end)

    def serve(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Answer requests, one at a time, for as long as the process lives."""
        while True:
            reply = answer(json.loads(self._lines.get()))
            self._replies.write(json.dumps(reply) + "\n")
            self._replies.flush()

    def _read(self) -> None:
        for line in self._requests:
            self._lines.put(line)
        # the parent is gone: nobody waits for what still runs
        try:
            self._at_end()
        finally:
            os._exit(0)
