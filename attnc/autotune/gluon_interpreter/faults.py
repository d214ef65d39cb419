"""What a kernel does that no card would forgive, or that a card would do in silence."""

from __future__ import annotations

import linecache
import sys
from types import FrameType


class GluonFault(RuntimeError):
    """A kernel broke a rule of the machine; the text says which, where, and against whom."""


_PACKAGE = __name__.rpartition(".")[0]


def kernel_frame() -> FrameType | None:
    """The innermost frame that is the kernel's own: outside of this interpreter."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE):
        frame = frame.f_back
    return frame


def kernel_line() -> int:
    """The line of the kernel that is being run; 0 where none is."""
    frame = kernel_frame()
    return frame.f_lineno if frame is not None else 0


def assigned_name() -> str:
    """What the kernel's line assigns to, or `?`."""
    frame = kernel_frame()
    if frame is None:
        return "?"
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    name = text.partition("=")[0].strip()
    return name if name.isidentifier() else "?"
