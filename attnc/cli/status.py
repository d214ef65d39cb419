"""Exit statuses: 2 always means a declaration that is refused, 1 one whose kernels are wrong."""

from __future__ import annotations

from attnc.errors import (
    AttncError,
    CacheError,
    CompileError,
    TritonMissing,
    UsageError,
    WorkerError,
)

OK = 0
FAILED = 1
REFUSED = 2
# the numbers of BSD's sysexits.h
USAGE = 64
UNABLE = 70
# what a shell reports of a command ended by SIGINT or SIGPIPE
INTERRUPTED = 130
BROKEN_PIPE = 141


def status_of(error: AttncError) -> int:
    """The status that an error ends the command with."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, CacheError | CompileError | TritonMissing | WorkerError):
        return UNABLE
    return REFUSED
