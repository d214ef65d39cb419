"""What a compiler says of a kernel: its binary and what that needs, or why there is none."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, fields
from typing import Any, Literal

from attnc.autotune.target import Target
from attnc.errors import CompileError


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel's binary, with its needs as the compiler states them.

    Units: `shared_bytes` a program; `registers` and the spills, in bytes, a thread. On AMD the
    registers are the VGPRs, and both spills are four bytes for each VGPR spilled. `name` is the
    binary's entry symbol; `scratch_bytes` is the global memory a program wants from its launcher.
    """

    kernel: str
    target: Target
    shared_bytes: int
    registers: int | None
    spill_stores: int | None
    spill_loads: int | None
    num_warps: int
    num_stages: int
    binary: bytes
    extension: Literal["cubin", "hsaco"]
    name: str
    seconds: float
    ptx: str | None
    scratch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CompileFailure:
    """Why a kernel has no binary; `aborted` where the compiler took its process with it."""

    kernel: str
    target: Target
    message: str
    tail: tuple[str, ...] = ()
    aborted: bool = False

    def error(self) -> CompileError:
        """The failure as an exception to raise."""
        return CompileError(
            f"{self.kernel} does not compile for {self.target}: {self.message}", notes=self.tail
        )


Verdict = Compiled | CompileFailure


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON; the large fields compressed."""
    facts = {field.name: getattr(verdict, field.name) for field in fields(verdict)}
    facts["target"] = str(verdict.target)
    if isinstance(verdict, Compiled):
        facts["binary"] = _shrink(verdict.binary)
        facts["ptx"] = None if verdict.ptx is None else _shrink(verdict.ptx.encode("utf-8"))
    return {type(verdict).__name__: facts}


def verdict_from_json(stored: dict[str, Any]) -> Verdict:
    """The verdict again.

    Raises: ValueError, KeyError or TypeError where the JSON is not one.
    """
    ((kind, facts),) = stored.items()
    facts = {**facts, "target": Target.parse(facts["target"])}
    if kind == CompileFailure.__name__:
        return CompileFailure(**{**facts, "tail": tuple(facts["tail"])})
    facts["binary"] = _grow(facts["binary"])
    if facts["ptx"] is not None:
        facts["ptx"] = _grow(facts["ptx"]).decode("utf-8")
    return Compiled(**facts)


def _shrink(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode("ascii")


def _grow(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text))
    except zlib.error as error:
        raise ValueError(str(error)) from error
