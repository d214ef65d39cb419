"""Launches through the driver: what it is handed, and what becomes of its refusals."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from attnc.autotune.launcher import Driver, LaunchError, Prepared, parameters
from attnc.autotune.module_cache import load_module
from attnc.codegen.planning.planner import plans
from attnc.ops.built import fast_launcher, store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from tests.autotune.in_c import LAUNCHERS, driver_of

PTX = """
.visible .entry flash_online(
\t.param .u64 .ptr .global .align 1 flash_online_param_0,
\t.param .u32 flash_online_param_1,
\t.param .u64 .ptr .global .align 1 flash_online_param_2
)
.reqntid 128
{
\tld.param.b32 %r1, [flash_online_param_1];
}
"""


class FakeLibrary:
    """Reads what a launch hands over, as the driver would, and answers `result`."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.launches: list[dict[str, object]] = []

    def cuLaunchKernelEx(self, config, function, table, extra):
        words = struct.unpack("=7I4xQQI4x", ctypes.string_at(config, 56))
        places = (ctypes.c_uint64 * 5).from_address(table)
        raw = [ctypes.string_at(place, 8) for place in places]
        self.launches.append(
            {
                "grid": words[:3], "block": words[3:6], "shared": words[6], "stream": words[7],
                "attributes": words[8:], "function": function, "extra": extra,
                "pointers": [int.from_bytes(raw[0], "little"), int.from_bytes(raw[1], "little")],
                "i32": int.from_bytes(raw[2][:4], "little", signed=True),
                "i64": int.from_bytes(raw[3], "little", signed=True),
                "hidden": int.from_bytes(raw[4], "little"),
            }
        )  # fmt: skip
        return self.result

    def cuGetErrorString(self, result, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"invalid argument"
        return 0


def prepared(library: FakeLibrary, launcher: str = "ctypes") -> Prepared:
    return Prepared(
        driver_of(library, launcher), 77, ["*bf16", "*fp32", "i32", "i64"], [-5, 1 << 40],
        threads=256, shared_bytes=98_304, hidden=1,
    )  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launch_hands_the_driver_every_argument_in_its_place(launcher):
    library = FakeLibrary()
    kernel = prepared(library, launcher)
    kernel.launch((7, 3, 1), 0xABC, (1 << 47, 4096))
    kernel.launch((1, 1, 1), 0, (16, 32))
    first, second = library.launches
    assert first == {
        "grid": (7, 3, 1), "block": (256, 1, 1), "shared": 98_304, "stream": 0xABC,
        "attributes": (0, 0), "function": 77, "extra": None, "pointers": [1 << 47, 4096],
        "i32": -5, "i64": 1 << 40, "hidden": 0,
    }  # fmt: skip
    assert second == {**first, "grid": (1, 1, 1), "stream": 0, "pointers": [16, 32]}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_refused_launch_says_what_the_driver_said(launcher):
    with pytest.raises(LaunchError, match=r"^launch: invalid argument \(CUDA error 1\)$"):
        prepared(FakeLibrary(result=1), launcher).launch((1, 1, 1), 0, (0, 0))


def test_a_number_before_a_pointer_is_refused():
    with pytest.raises(ValueError, match="pointers come first"):
        Prepared(Driver(FakeLibrary()), 1, ["i32", "*bf16"], [1], threads=32, shared_bytes=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_a_machine_without_a_driver_says_so():
    with pytest.raises(LaunchError, match=r"^there is no CUDA driver here: "):
        Driver()


def test_the_parameters_of_a_ptx_entry_are_counted_and_not_its_loads():
    assert parameters(PTX) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_without_cudas_driver_a_module_launches_as_it_was_emitted():
    op = compile_op(shipped()["flash"], backend="triton")
    plan = plans(op.request((64, 64), "bf16", None, False))[0]
    module = load_module(store_plan(plan))
    assert fast_launcher(plan, module) is module.forward
