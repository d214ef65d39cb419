"""A kernel shipped as binaries: one made for what its calls usually are, one for all others.

Copied as it is into wheels. The usual binary was promised adjacent channels and pointers and
strides in multiples of 16; each call is held against the promises, and one that breaks any runs the
general binary, which was promised nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from attnc.autotune.launcher import Driver, LaunchError, Prepared

# launches remembered a kernel and thread; lengths that never repeat would fill memory
_MOST = 1024
_INT32 = range(-(1 << 31), 1 << 31)


def cdiv(number: int, step: int) -> int:
    """Steps that cover a number."""
    return -(-number // step)


class BinaryKernel:
    """A kernel for a launcher to launch.

    `usual` and `general` are entries of a manifest, None where all calls keep the promises; `read`
    gives the bytes of a file of theirs, verified.
    """

    def __init__(
        self,
        usual: Mapping[str, Any],
        general: Mapping[str, Any] | None,
        read: Callable[[Mapping[str, Any]], bytes],
        driver: Driver,
    ) -> None:
        self._usual, self._general = usual, general
        self._read, self._driver = read, driver
        self._tensors = sum(kind["type"].startswith("*") for kind in usual["arguments"])
        self._functions: dict[tuple[str, int], int] = {}
        self._local = threading.local()

    def launch(
        self, grid: tuple[int, int, int], tensors: Sequence[Any], numbers: tuple[int, ...]
    ) -> None:
        """Queue one run on the current device's current stream."""
        pointers = [tensor.data_ptr() for tensor in tensors]
        alignment = 0
        for pointer in pointers:
            alignment |= pointer
        device = torch._C._cuda_getDevice()
        key = (device, not alignment & 15, numbers)
        try:
            prepared: Prepared | None = self._local.known.get(key)
        except AttributeError:
            self._local.known, prepared = {}, None
        if prepared is None:
            if len(self._local.known) >= _MOST:
                self._local.known.clear()
            prepared = self._prepare(device, not alignment & 15, numbers)
            self._local.known[key] = prepared
        prepared.launch(grid, torch._C._cuda_getCurrentRawStream(device), pointers)

    def remembered(self, device: int, numbers: tuple[int, ...]) -> Prepared | None:
        """This thread's launch with these numbers and aligned pointers, if there was one."""
        known: Prepared | None = getattr(self._local, "known", {}).get((device, True, numbers))
        return known

    def listening(self) -> bool:
        """Whether somebody wants to hear of every launch: nobody can."""
        return False

    def _prepare(self, device: int, aligned: bool, numbers: Sequence[int]) -> Prepared:
        # a first launch of this thread may find no context
        self._driver.attach(device)
        promised = self._usual["arguments"][self._tensors :]
        usual = aligned and keeps_promises(promised, numbers)
        entry = self._usual if usual else self._general
        if entry is None:
            raise LaunchError(f"{self._usual['entry']} was promised other strides or alignment")
        kinds = [argument["type"] for argument in entry["arguments"]]
        given = kinds[self._tensors : self._tensors + len(numbers)]
        taken = [(kind, x) for kind, x in zip(given, numbers, strict=True) if kind != "constexpr"]
        types = [*kinds[: self._tensors], *(kind for kind, _ in taken)]
        return Prepared(
            self._driver,
            self._function(entry, device),
            types,
            [x for _, x in taken],
            threads=entry["num_warps"] * 32,
            shared_bytes=entry["shared_bytes"],
            hidden=entry["parameters"] - len(types),
        )

    def _function(self, entry: Mapping[str, Any], device: int) -> int:
        known = self._functions.get((entry["file"], device))
        if known is None:
            known = self._driver.load(self._read(entry), entry["entry"], entry["shared_bytes"])
            self._functions[entry["file"], device] = known
        return known


def load_launcher(
    source: bytes, place: str, package: str, kernels: Mapping[str, object]
) -> dict[str, Any]:
    """Run the text of a launcher with its kernels in place; its functions by name.

    `package` is the one that holds this module, under whatever name.
    """
    space: dict[str, Any] = {"__name__": f"{package}.launcher_text", "__package__": package}
    # the caller has compared these very bytes with their digest
    exec(compile(source, place, "exec"), space)  # noqa: S102
    space.update(kernels)
    return space


def keeps_promises(promised: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> bool:
    """Whether the numbers of a call are what a binary was compiled for.

    `promised` are a manifest's arguments from the first number on; constants of the kernel's own
    follow, which no call passes.
    """
    for argument, number in zip(promised, numbers, strict=False):
        if argument["type"] == "constexpr":
            if number != argument["value"]:
                return False
        elif (
            (argument["divisible16"] and number % 16)
            or number % argument.get("multiple", 1)
            or (argument["type"] == "i32" and number not in _INT32)
        ):
            return False
    return True
