"""Kernels launched through the CUDA driver itself: a few microseconds of host time each.

Stands alone: it imports nothing of attnc and is copied as it is into wheels. Everything that does
not change from one call to the next is packed once, so that a launch writes its pointers, its grid
and its stream, and calls the driver: in C where `native` was compiled, by ctypes elsewhere.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# how C types of a kernel's arguments are packed
_CODES = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}
_WORD = 8
# CUfunction_attribute and CUfunc_cache, of cuda.h
_MAX_DYNAMIC_SHARED = 8
_PREFER_SHARED = 1
# what every function may use without asking
_PLAIN_SHARED_BYTES = 48 * 1024
# CUlaunchConfig: seven u32 (grid, block, shared bytes), a stream, attributes, how many of them
_CONFIG = "=7I4xQ16x"
_CONFIG_BYTES = struct.calcsize(_CONFIG)


class LaunchError(RuntimeError):
    """The driver refused; the message holds its own words."""


class Image(NamedTuple):
    """A kernel's arguments as bytes: where each begins, and where tensors' addresses belong.

    `boxed` says of each tensor, by 1, that a descriptor stands there.
    """

    packed: bytes
    offsets: tuple[int, ...]
    tensors: tuple[int, ...]
    boxed: tuple[int, ...]


class Driver:
    """libcuda, by its C interface, and the launcher in C, where there is one.

    Raises: LaunchError where the library is not there.
    """

    def __init__(self, library: Any = None, native: ModuleType | None = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                raise LaunchError(f"there is no CUDA driver here: {error}") from error
            library.cuLaunchKernelEx.argtypes = [ctypes.c_void_p] * 4
        self._library = library
        self.launch = library.cuLaunchKernelEx
        self.native = native

    def function(self, name: str, *types: Any) -> Any:
        """A function of the library by name, told the C types that it takes."""
        found = getattr(self._library, name)
        found.argtypes = types
        return found

    def kernel(self, function: int, threads: int, shared_bytes: int, image: Image) -> Any:
        """A kernel of the launcher in C; None where there is no such launcher."""
        if self.native is None:
            return None
        replace = self._library.cuTensorMapReplaceAddress if any(image.boxed) else None
        return self.native.Kernel(
            _address(self.launch), _address(replace), function, threads, shared_bytes, *image
        )

    def attach(self, device: int) -> None:
        """Make a device's primary context the current one of this thread, where it is not.

        PyTorch's threads for gradients have none until something of the runtime runs in them.
        """
        current = ctypes.c_int(-1)
        if self._library.cuCtxGetDevice(ctypes.byref(current)) == 0 and current.value == device:
            return
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self._library.cuDeviceGet(ctypes.byref(handle), device), "attach")
        retained = self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)
        self.check(retained, "attach")
        self.check(self._library.cuCtxSetCurrent(context), "attach")

    def load(self, binary: bytes, entry: str, shared_bytes: int) -> int:
        """The handle of a function of a cubin, loaded into the current context.

        Raises: LaunchError where the device cannot run it.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self._library.cuModuleLoadData(ctypes.byref(module), binary), entry)
        name = entry.encode()
        found = self._library.cuModuleGetFunction(ctypes.byref(function), module, name)
        self.check(found, entry)
        if shared_bytes > _PLAIN_SHARED_BYTES:
            self.check(self._library.cuFuncSetCacheConfig(function, _PREFER_SHARED), entry)
            done = self._library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared_bytes)
            self.check(done, entry)
        assert function.value is not None, f"{entry} has no handle"
        return function.value

    def check(self, result: int, what: str) -> None:
        """Raise what a result that is not 0 means."""
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            said = text.value.decode() if text.value else "no message"
            raise LaunchError(f"{what}: {said} (CUDA error {result})")


class Prepared:
    """One kernel with all its numbers packed; only pointers, grid and stream are open.

    `types` are those of the arguments the binary takes, pointers (`*bf16`) first, then numbers with
    their `values`; `hidden` null pointers follow, which Triton's compiler adds. One thread at a
    time may launch it: a launch writes into its buffer, at whose `words` the arguments stand.
    """

    def __init__(
        self,
        driver: Driver,
        function: int,
        types: Sequence[str],
        values: Sequence[float],
        *,
        threads: int,
        shared_bytes: int,
        hidden: int = 2,
    ) -> None:
        pointers = sum(kind.startswith("*") for kind in types)
        if not all(kind.startswith("*") for kind in types[:pointers]):
            raise ValueError(f"pointers come first, then numbers: {', '.join(types)}")
        count = len(types) + hidden
        # the configuration, then the arguments, so that one call writes all that is open
        self._buffer = ctypes.create_string_buffer(_CONFIG_BYTES + _WORD * count)
        base = ctypes.addressof(self._buffer) + _CONFIG_BYTES
        for place, (kind, value) in enumerate(zip(types[pointers:], values, strict=True)):
            at = _CONFIG_BYTES + _WORD * (pointers + place)
            struct.pack_into(f"={_CODES[kind]}", self._buffer, at, value)
        self.words = [base + _WORD * n for n in range(count)]
        self._table = (ctypes.c_void_p * count)(*self.words)
        self._write = struct.Struct(f"{_CONFIG}{pointers}Q").pack_into
        self._threads, self._shared_bytes, self._pointers = threads, shared_bytes, pointers
        self._driver, self._run, self._function = driver, driver.launch, function
        self._at = ctypes.addressof(self._buffer), ctypes.addressof(self._table)

    def arrange(self, order: Sequence[int]) -> None:
        """Let the kernel find its arguments at these addresses, `words` among them."""
        self._table = (ctypes.c_void_p * len(order))(*order)
        self._at = self._at[0], ctypes.addressof(self._table)

    def image(self) -> Image:
        """The arguments as bytes: pointers, numbers, nulls, in words of eight bytes."""
        words = self._buffer.raw[_CONFIG_BYTES : _CONFIG_BYTES + _WORD * len(self.words)]
        places = tuple(range(0, len(words), _WORD))
        return Image(words, places, places[: self._pointers], (0,) * self._pointers)

    @cached_property
    def kernel(self) -> Any:
        """The same launch in C, None where there is no such launcher."""
        return self._driver.kernel(self._function, self._threads, self._shared_bytes, self.image())

    @property
    def native(self) -> ModuleType | None:
        """The launcher in C."""
        return self._driver.native

    def launch(self, grid: tuple[int, int, int], stream: int, pointers: Sequence[int]) -> None:
        """Queue one run of the kernel on a stream.

        Raises: LaunchError where the driver refuses.
        """
        if self.kernel is not None:
            self.check(self.kernel.launch(*grid, stream, *pointers))
            return
        threads, shared = self._threads, self._shared_bytes
        self._write(self._buffer, 0, *grid, threads, 1, 1, shared, stream, *pointers)
        config, table = self._at
        self.check(self._run(config, self._function, table, None))

    def on(self, grid: tuple[int, int, int]) -> tuple[Callable[..., None], Callable[[], int]]:
        """A launch over one grid in two calls: hand over the stream and the pointers, then run.

        What `run` answers has to be checked.
        """
        block = (self._threads, 1, 1, self._shared_bytes)
        config, table = self._at
        return (
            partial(self._write, self._buffer, 0, *grid, *block),
            partial(self._run, config, self._function, table, None),
        )

    def check(self, result: int) -> None:
        """Raise LaunchError for an answer of the driver's that is not 0."""
        if result:
            self._driver.check(result, "launch")


def load_native(path: Path) -> ModuleType:
    """The launcher in C, of a file.

    Raises: ImportError where this Python or this machine cannot run it.
    """
    name = "native_launch"
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None, "a file with a loader has a spec"
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def _address(function: Any) -> int:
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def parameters(ptx: str) -> int:
    """How many parameters the entry of a PTX text has."""
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None, "PTX without an entry"
    return entry[1].count(".param")
