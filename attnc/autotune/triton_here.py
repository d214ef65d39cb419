"""Whether Triton is installed, and what is said where it is not: it has wheels for Linux alone."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from attnc.errors import TritonMissing

_SYSTEMS = {"darwin": "macOS", "win32": "Windows"}


def has_triton() -> bool:
    """Is there a Triton to import? It is not imported to find out."""
    return find_spec("triton") is not None


def require_triton(purpose: str) -> None:
    """Go on where Triton is installed.

    `purpose` says what wants it, as in "compiling kernels".
    Raises: TritonMissing.
    """
    if has_triton():
        return
    if sys.platform == "linux":
        notes: tuple[str, ...] = ()
        hints = ("pip install triton",)
    else:
        system = _SYSTEMS.get(sys.platform, sys.platform)
        notes = (f"Triton has wheels for Linux, and this is {system}",)
        hints = ("use Linux for that: a container, WSL, or the machine with the GPU",)
    raise TritonMissing(
        f"{purpose} needs Triton, which is not installed",
        notes=(
            *notes,
            "declaring, check, plan, explain, emit, gallery and op.reference do without it",
        ),
        hints=hints,
    )
