"""A shipped kernel: which binary a call gets, and what it is launched with."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from attnc.autotune.binary_kernel import BinaryKernel, cdiv, keeps_promises
from attnc.autotune.launcher import Driver
from attnc.ops.package_folder import runs_on


def argument(name: str, kind: str, *, divisible16: bool = False, value: object = None):
    return {"name": name, "type": kind, "divisible16": divisible16, "value": value}


USUAL = {
    "kernel": "k", "file": "usual.cubin", "sha256": "", "entry": "k", "num_warps": 4,
    "shared_bytes": 65_536, "parameters": 5,
    "arguments": [
        argument("q", "*bf16", divisible16=True), argument("stride_t", "i32", divisible16=True),
        argument("stride_k", "constexpr", value=1), argument("T", "i32"),
        argument("BT", "constexpr", value=64),
    ],
}  # fmt: skip
GENERAL = {
    **USUAL, "file": "general.cubin", "num_warps": 8, "shared_bytes": 1024, "parameters": 6,
    "arguments": [
        argument("q", "*bf16"), argument("stride_t", "i64"), argument("stride_k", "i64"),
        argument("T", "i32"), argument("BT", "constexpr", value=64),
    ],
}  # fmt: skip


class FakeLibrary:
    """Loads binaries as numbers, and writes down what is launched."""

    def __init__(self) -> None:
        self.context: int | None = None
        self.loaded: list[bytes] = []
        self.attributes: list[tuple[int, int]] = []
        self.launches: list[tuple[int, int, bytes]] = []

    def cuModuleLoadData(self, module, binary):
        assert self.context == 55, "no current context: the real one answers 201"
        self.loaded.append(binary)
        return 0

    def cuModuleGetFunction(self, function, module, name):
        ctypes.cast(function, ctypes.POINTER(ctypes.c_void_p))[0] = len(self.loaded)
        return 0

    def cuCtxGetDevice(self, device):
        return 201 if self.context is None else 0

    def cuDeviceGet(self, handle, device):
        return 0

    def cuDevicePrimaryCtxRetain(self, context, handle):
        ctypes.cast(context, ctypes.POINTER(ctypes.c_void_p))[0] = 55
        return 0

    def cuCtxSetCurrent(self, context):
        self.context = context.value
        return 0

    def cuFuncSetCacheConfig(self, function, config):
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        self.attributes.append((attribute, value))
        return 0

    def cuLaunchKernelEx(self, config, function, table, extra):
        threads = struct.unpack_from("=4I", ctypes.string_at(config, 56))[3]
        places = (ctypes.c_uint64 * 4).from_address(table)
        raw = b"".join(ctypes.string_at(place, 8) for place in places[1:])
        self.launches.append((function, threads, raw))
        return 0


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 9, raising=False)
    return FakeLibrary()


@pytest.fixture
def kernel(library):
    return BinaryKernel(USUAL, GENERAL, lambda e: e["file"].encode(), Driver(library))


def test_a_call_that_keeps_the_promises_runs_the_usual_binary(kernel, library):
    q = torch.zeros(64)
    for _ in range(2):
        kernel.launch((3, 1, 1), (q,), (32, 1, 77))
    assert library.loaded == [b"usual.cubin"]
    assert library.attributes == [(8, 65_536)]
    # one stride and the length: the constant stride is compiled in
    numbers = struct.pack("=iiii", 32, 0, 77, 0)
    assert [(f, n, raw[:16]) for f, n, raw in library.launches] == [(1, 128, numbers)] * 2


@pytest.mark.parametrize(
    ("offset", "numbers"),
    [(1, (32, 1, 77)), (0, (33, 1, 77)), (0, (32, 2, 77)), (0, (1 << 33, 1, 77))],
    ids=["pointer", "divisible", "inner stride", "wide stride"],
)
def test_a_call_that_breaks_a_promise_runs_the_general_binary(offset, numbers, kernel, library):
    kernel.launch((3, 1, 1), (torch.zeros(64)[offset:],), numbers)
    assert library.loaded == [b"general.cubin"]
    raw = struct.pack("=qqii", *numbers, 0)
    assert library.launches == [(1, 256, raw)]


def test_both_binaries_serve_one_kernel_in_turn(kernel, library):
    q = torch.zeros(64)
    for stride in (1, 2, 1):
        kernel.launch((1, 1, 1), (q,), (32, stride, 77))
    assert library.loaded == [b"usual.cubin", b"general.cubin"]
    assert [function for function, _, _ in library.launches] == [1, 2, 1]


def test_a_promise_is_held_to_every_number():
    promised = USUAL["arguments"][1:]
    assert keeps_promises(promised, (16, 1, 5))
    assert not keeps_promises(promised, (16, 0, 5))
    assert not keeps_promises(promised, (24, 1, 5))
    assert not keeps_promises(promised, (16, 1, 1 << 31))


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [("cuda:80", (8, 0), True), ("cuda:80", (8, 6), True), ("cuda:86", (8, 0), False),
     ("cuda:80", (9, 0), False), ("cuda:90", (9, 0), True), ("cuda:90", (10, 0), False),
     ("cuda:100", (10, 0), True), ("cuda:100", (10, 3), False), ("hip:gfx942", (9, 4), False)],
)  # fmt: skip
def test_a_binary_runs_where_its_architecture_is(target, capability, runs):
    assert runs_on(target, capability) is runs


def test_cdiv_covers():
    assert [cdiv(n, 64) for n in (1, 64, 65)] == [1, 1, 2]
