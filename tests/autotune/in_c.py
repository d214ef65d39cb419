"""A driver that is faked in Python, for both launchers: C calls it by its functions' addresses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from attnc.autotune.launcher import Driver
from attnc.autotune.native_build import native_launcher

_WORD = ctypes.c_void_p
LAUNCHERS = ["ctypes", "c"]


def driver_of(library: Any, launcher: str) -> Driver:
    """A driver over a fake library, launching by ctypes or in C."""
    if launcher == "ctypes":
        return Driver(library)
    native = native_launcher()
    if native.module is None:
        pytest.skip(f"no launcher in C: {native.why_not}")
    library.cuLaunchKernelEx = ctypes.CFUNCTYPE(ctypes.c_int, *[_WORD] * 4)(
        library.cuLaunchKernelEx
    )
    if hasattr(library, "cuTensorMapReplaceAddress"):
        library.cuTensorMapReplaceAddress = ctypes.CFUNCTYPE(ctypes.c_int, _WORD, _WORD)(
            library.cuTensorMapReplaceAddress
        )
    return Driver(library, native.module)
