"""The machines that kernels are compiled for ahead of time."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from attnc.errors import UsageError

_ARCHITECTURES = {
    "cuda": ("80", "86", "87", "89", "90", "100", "103", "120", "121"),
    "hip": ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"),
}
KNOWN_TARGETS = tuple(
    f"{backend}:{arch}" for backend, arches in _ARCHITECTURES.items() for arch in arches
)


@dataclass(frozen=True, slots=True)
class Target:
    """A backend and an architecture, written `cuda:90` or `hip:gfx942`."""

    backend: str
    arch: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target of that name.

        Raises: UsageError where it is not a known one.
        """
        backend, _, arch = text.strip().partition(":")
        if arch in _ARCHITECTURES.get(backend, ()):
            return cls(backend, arch)
        close = difflib.get_close_matches(text, KNOWN_TARGETS, n=1)
        raise UsageError(
            f"unknown target {text!r}",
            notes=("the known ones are " + ", ".join(KNOWN_TARGETS),),
            hints=(f"did you mean {close[0]!r}?",) if close else (),
        )

    @property
    def warp_size(self) -> int:
        """Threads of a warp: 64 on AMD's CDNA, 32 elsewhere."""
        return 64 if self.arch.startswith("gfx9") else 32

    @property
    def extension(self) -> Literal["cubin", "hsaco"]:
        """How a binary's file name ends."""
        return "cubin" if self.backend == "cuda" else "hsaco"

    def __str__(self) -> str:
        return f"{self.backend}:{self.arch}"
