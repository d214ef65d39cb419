"""What a compiler needs to know of one kernel: its arguments' types, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: `type` is `*bf16`, `i32`, ... or `constexpr` with its `value`.

    `divisible16` promises that the pointer or the integer is a multiple of 16, `multiple` that the
    integer is one of that. A descriptor's type names its box and how that lies in shared memory.
    """

    name: str
    type: str
    divisible16: bool = False
    multiple: int = 1
    value: int | float | str | bool | None = None


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """A kernel of an emitted module, specialised for ahead-of-time compiling.

    `registers` are those of a thread at the start, where the kernel moves them between its warps.
    """

    name: str
    arguments: tuple[Argument, ...]
    num_warps: int
    num_stages: int
    registers: int | None = None
