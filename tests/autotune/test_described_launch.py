"""Launches of descriptors: what the driver is asked to encode, and what a kernel finds where."""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace

import pytest
import torch

from attnc.autotune.binary_kernel import load_launcher
from attnc.autotune.described_launch import Box, PreparedBoxes
from attnc.autotune.fast_kernel import DescribedKernel
from attnc.autotune.launcher import Driver, LaunchError
from attnc.autotune.replay import record
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.launch import box_sides
from attnc.codegen.text.render import render_launcher
from attnc.ops.descriptors import describing
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from tests.autotune.in_c import LAUNCHERS, driver_of

# bytes of a row that each CUtensorMapSwizzle may have
SWIZZLED = {1: 32, 2: 64, 3: 128}


class FakeLibrary:
    """Encodes a descriptor as its own arguments, and reads what a launch hands over.

    It refuses what the driver refuses: a box whose rows are wider than the swizzle.
    """

    def __init__(self, kinds: str, refuse: str = "") -> None:
        self.encoded: list[tuple] = []
        self.launches: list[list[object]] = []

        def encode(start, kind, rank, address, shape, strides, tile, apart, *options):
            assert start % 64 == 0, "a descriptor begins at a multiple of 64 bytes"
            self.encoded.append(
                (kind, rank, list(shape), list(strides)[:-1], list(tile), list(apart), options)
            )
            ctypes.memmove(start, struct.pack("=QQ", address, len(self.encoded)), 16)
            wide = 2 * tile[0] > SWIZZLED[options[1]]
            return 1 if wide or refuse == "encode" else 0

        def move(start, address):
            ctypes.memmove(start, struct.pack("=Q", address), 8)
            return 1 if refuse == "replace" else 0

        def launch(config, function, table, extra):
            places = (ctypes.c_uint64 * len(kinds)).from_address(table)
            codes = {"d": "=QQ", "i": "=i", "q": "=q", "p": "=Q"}
            self.launches.append(
                [
                    struct.unpack(codes[kind], ctypes.string_at(at, struct.calcsize(codes[kind])))
                    for kind, at in zip(kinds, places, strict=True)
                ]
            )
            return 0

        self.context: int | None = None
        self.cuTensorMapEncodeTiled = encode
        self.cuTensorMapReplaceAddress = move
        self.cuLaunchKernelEx = launch

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

    def cuGetErrorString(self, result, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"invalid argument"
        return 0


# a descriptor with its sizes and strides, a pointer, another descriptor, a number, two nulls
KINDS = "d" + "iiii" + "qqqq" + "p" + "d" + "iiii" + "qqqq" + "i" + "pp"
Q = Box((2, 4, 300, 80), (96000, 80, 320, 1), (1, 1, 64, 64), 3, "bf16", 256)
OUT = Box((2, 4, 300, 64), (76800, 64, 256, 1), (1, 1, 64, 32), 2, "fp16", 512)


def prepared(library: FakeLibrary, launcher: str = "ctypes") -> PreparedBoxes:
    return PreparedBoxes(
        driver_of(library, launcher), 7, ["box", "*fp32", "box", "i32"], [Q, OUT], [-3],
        threads=384, shared_bytes=98_304, hidden=2,
    )  # fmt: skip


def test_descriptors_are_encoded_once_innermost_axis_first():
    library = FakeLibrary(KINDS)
    kernel = prepared(library)
    for _ in range(3):
        kernel.launch((1, 1, 1), 0, (16, 32, 48))
    # no interleave, the swizzle, 128 bytes promoted, zeros past the edges
    assert library.encoded == [
        (9, 4, [80, 300, 4, 2], [640, 160, 192000], [64, 64, 1, 1], [1] * 4, (0, 3, 2, 0)),
        (6, 4, [64, 300, 4, 2], [512, 128, 153600], [32, 64, 1, 1], [1] * 4, (0, 2, 2, 0)),
    ]


def test_a_descriptor_of_fp32_counts_four_bytes_an_element():
    library = FakeLibrary("d" + "iiii" + "qqqq" + "pp")
    box = Box((2, 4, 300, 64), (76800, 64, 256, 1), (1, 1, 64, 32), 3, "fp32", 512)
    PreparedBoxes(
        driver_of(library, "ctypes"), 7, ["box"], [box], [], threads=384, shared_bytes=0, hidden=2
    )
    assert library.encoded == [
        (7, 4, [64, 300, 4, 2], [1024, 256, 307200], [32, 64, 1, 1], [1] * 4, (0, 3, 2, 0))
    ]


@pytest.mark.parametrize(
    ("launcher", "replayed"), [("ctypes", False), ("ctypes", True), ("c", False)]
)
def test_a_kernel_finds_every_argument_where_triton_puts_it(launcher, replayed):
    library = FakeLibrary(KINDS)
    kernel = prepared(library, launcher)
    for addresses in ((1 << 40, 32, 48), (64, 80, 1 << 44)):
        if replayed:
            write, run = kernel.on((5, 1, 1))
            write(0, *addresses)
            assert run() == 0
        else:
            kernel.launch((5, 1, 1), 0, addresses)
        first, second, third = addresses
        assert library.launches[-1] == [
            (first, 1), *((n,) for n in Q.shape), *((n,) for n in Q.strides),
            (second,),
            (third, 2), *((n,) for n in OUT.shape), *((n,) for n in OUT.strides),
            (-3,), (0,), (0,),
        ]  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("refuse", ["encode", "replace"])
def test_what_the_driver_refuses_is_an_error_with_its_words(refuse, launcher):
    library = FakeLibrary(KINDS, refuse)
    with pytest.raises(LaunchError, match="invalid argument"):
        prepared(library, launcher).launch((1, 1, 1), 0, (16, 32, 48))
    assert library.launches == []


def gluon_plan(name: str = "flash_alibi", dim: int = 64):
    op = compile_op(shipped()[name], backend="gluon")
    return plans(op.request((dim, dim), "bf16", None, False))[0]


def copies(boxes) -> list[dict]:
    """The descriptors of a kernel as Triton's compiler lists them: rows of 128 bytes at most."""
    return [
        {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [1, 1, box[0], 64]}
        for box in boxes if box is not None
    ]  # fmt: skip


def ptx_of(count: int) -> str:
    return ".entry some(" + ", ".join(f".param .u32 p{n}" for n in range(count)) + ")"


class FakeTriton:
    """Stands for a kernel: launches nothing, and says what it was compiled to."""

    def __init__(self, names: list[str], constant: str, boxes=()) -> None:
        self.params = [SimpleNamespace(name=name) for name in names]
        kinds = dict.fromkeys(names, "i32") | {"u_slope": "*fp32", "lse": "*fp32"}
        kinds |= dict.fromkeys("qkvo", "tensordesc<...>") | {constant: "constexpr"}
        # four descriptors of nine parameters, two pointers, five numbers, two hidden
        self.compiled = SimpleNamespace(
            src=SimpleNamespace(signature=kinds), function=11, asm={"ptx": ptx_of(45)},
            metadata=SimpleNamespace(num_warps=12, shared=1000, tensordesc_meta=copies(boxes)),
        )  # fmt: skip
        self.given: list[tuple] = []

    def __getitem__(self, grid):
        return lambda *given, **options: self.given.append((given, options)) or self.compiled


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("dim", [64, 128])
def test_an_emitted_launcher_launches_descriptors_by_way_of_triton_once(dim, launcher, monkeypatch):
    """Then by the driver, and a call like it is replayed: addresses of whole tensors, no views."""
    plan = gluon_plan(dim=dim)
    step = plan.passes[0]
    names = [t.name for t in step.kernel.tensors]
    strides = [stride for t in step.kernel.tensors for stride in t.strides]
    boxes = [box_sides(t, step.tile) if t.box else None for t in step.kernel.tensors]
    triton = FakeTriton([*names, *strides, *step.kernel.scalars], strides[0], boxes)
    kinds = ("d" + "iiii" + "qqqq") * 3 + "p" + "d" + "iiii" + "qqqq" + "p" + "iiiii" + "pp"
    library = FakeLibrary(kinds)

    def tiled(x, rows, columns):
        assert library.context == 55, "a thread without a context makes no descriptor"
        return "tiled", tuple(x.shape), rows, columns

    driver = driver_of(library, launcher)
    kernel = DescribedKernel(triton, step.options, driver, boxes, tiled)
    own = load_launcher(
        render_launcher(plan).encode(), "launcher", "attnc.autotune", {"flash_alibi_online": kernel}
    )["forward"]
    run = describing(own)
    # tensors of a CPU have no device number
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 5, raising=False)
    q = torch.zeros(2, 300, 4, dim, dtype=torch.bfloat16)
    k, v = (torch.zeros(2, 200, 2, dim, dtype=torch.bfloat16) for _ in range(2))
    slope = torch.zeros(4)
    run(q, k, v, slope)
    ((given, options),) = triton.given
    assert given[:3] == (
        ("tiled", (2, 300, 4, dim), 64, dim), ("tiled", (2, 200, 2, dim), 128, dim),
        ("tiled", (2, 200, 2, dim), 128, dim),
    )  # fmt: skip
    assert given[-6:] == (1, 2, 300, 200, 4, 2) and options == {**step.options}
    o, lse = run(q, k, v, slope)
    assert len(triton.given) == 1, "the second launch is the driver's"
    found = library.launches[-1]
    assert [found[n][0] for n in (0, 9, 18, 27, 28, 37)] == [
        x.data_ptr() for x in (q, k, v, slope, o, lse)
    ]
    assert [n for (n,) in found[1:9]] == [2, 4, 300, dim, *q.transpose(1, 2).stride()]
    assert [n for (n,) in found[38:]] == [2, 300, 200, 4, 2, 0, 0]
    again = tuple(x.clone() for x in (q, k, v, slope))
    results, replay = record(run, (q, k, v, slope))
    assert replay is not None and len(results) == 2
    o, lse = replay.run(again)
    assert [library.launches[-1][n][0] for n in (0, 9, 18, 27, 28, 37)] == [
        x.data_ptr() for x in (*again, o, lse)
    ]


def test_a_call_of_an_odd_address_is_not_recorded():
    """A replay would record what runs otherwise, or nothing."""
    ran = []
    odd = torch.zeros(65 * 64 + 1, dtype=torch.bfloat16)[1:].view(1, 65, 1, 64)
    run = describing(lambda *_: pytest.fail("it has no descriptor"), lambda *x: ran.append(x) or x)
    results, replay = record(run, (odd, odd.clone(), odd.clone()))
    assert replay is None and len(ran) == 1 and results[0] is odd


def test_a_listener_hears_of_a_launch_by_way_of_triton(monkeypatch):
    plan = gluon_plan("flash")
    step = plan.passes[0]
    names = [t.name for t in step.kernel.tensors]
    triton = FakeTriton([*names, *step.kernel.scalars], "none")
    boxes = [box_sides(t, step.tile) if t.box else None for t in step.kernel.tensors]
    kernel = DescribedKernel(triton, step.options, Driver(FakeLibrary("")), boxes, lambda *x: x)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(kernel, "listening", lambda: True)
    x = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16)
    numbers = (*(*x.shape, *x.stride()) * 4, 1, 8, 8, 1, 1)
    for _ in range(2):
        kernel.launch((1, 1, 1), (x, x, x, x, torch.zeros(8)), numbers)
    assert [given[5:] for given, _ in triton.given] == [(1, 8, 8, 1, 1)] * 2


def test_a_launcher_of_pointers_hands_over_no_shapes():
    op = compile_op(shipped()["flash"], backend="triton")
    plan = plans(op.request((64, 64), "bf16", None, False))[0]
    assert "*q.stride()," in render_launcher(plan)
    assert "*q.shape," not in render_launcher(plan)
    assert "*q.shape," in render_launcher(gluon_plan("flash"))
