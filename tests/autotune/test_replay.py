"""A launcher's call played again: every address in its place, and what is never replayed."""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace

import pytest
import torch

from attnc.autotune.launcher import Driver, LaunchError, Prepared
from attnc.autotune.replay import record
from tests.autotune.in_c import LAUNCHERS, driver_of

TABLE = torch.zeros(16)


class FakeLibrary:
    """Reads the addresses that a launch hands over."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        self.streams: list[int] = []
        self.answer = 0

    def cuLaunchKernelEx(self, config, function, table, extra):
        grid = struct.unpack_from("=3I", ctypes.string_at(config, 56))
        places = (ctypes.c_uint64 * function).from_address(table)
        words = (struct.unpack("=Q", ctypes.string_at(place, 8))[0] for place in places)
        self.launches.append((function, grid, tuple(words)))
        self.streams += struct.unpack_from("=Q", ctypes.string_at(config, 56), 32)
        return self.answer

    def cuGetErrorString(self, result, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"out of resources"
        return 0


class FakeKernel:
    """A kernel of some pointers and no numbers; its handle is how many there are."""

    def __init__(self, driver: Driver, pointers: int) -> None:
        self.heard = False
        self.prepared = Prepared(
            driver, pointers, ["*fp32"] * pointers, [], threads=128, shared_bytes=0,
            hidden=0,
        )  # fmt: skip

    def launch(self, grid, tensors, numbers):
        self.prepared.launch(grid, 0, [x.data_ptr() for x in tensors])

    def remembered(self, device, numbers):
        return self.prepared

    def listening(self):
        return self.heard


TEXT = """
def forward(q, k):
    n, _ = q.shape
    state = torch.empty((n, 3), dtype=torch.float64, device=q.device)
    norm = torch.empty((5,), dtype=torch.float32, device=q.device)
    o = torch.empty((n, 7), dtype=q.dtype, device=q.device)
    fold.launch((n, 1, 1), (k, state, norm), ())
    output.launch((n, 2, 1), (q, table, norm, state, o), ())
    return {returned}
"""


@pytest.fixture(params=LAUNCHERS)
def launcher(monkeypatch, request):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 9, raising=False)

    def made(returned="o, norm", text=TEXT):
        library = FakeLibrary()
        driver = driver_of(library, request.param)
        space = {
            "torch": torch, "table": TABLE, "fold": FakeKernel(driver, 3),
            "output": FakeKernel(driver, 5),
        }  # fmt: skip
        exec(text.replace("{returned}", returned), space)
        return SimpleNamespace(run=space["forward"], library=library, fold=space["fold"])

    return made


def tensors(tokens=4):
    return torch.zeros(tokens, 16), torch.zeros(tokens, 16)


@pytest.mark.parametrize("returned", ["o, norm", "o"])
def test_a_replay_hands_every_kernel_this_calls_addresses(launcher, returned):
    made = launcher(returned)
    results, replay = record(made.run, tensors())
    made.library.launches.clear()
    q, k = tensors()
    again = replay.run((q, k))
    assert [(x.shape, x.stride(), x.dtype) for x in again] == [
        (x.shape, x.stride(), x.dtype) for x in results
    ]
    (_, fold_grid, fold), (_, output_grid, output) = made.library.launches
    assert (fold_grid, output_grid) == ((4, 1, 1), (4, 2, 1))
    assert made.library.streams == [0, 0, 9, 9], "the recording's, then the current one"
    assert fold[0] == k.data_ptr()
    assert output[:2] == (q.data_ptr(), TABLE.data_ptr())
    assert output[4] == again[0].data_ptr()
    # both kernels find norm and the state in the same places, a state's length apart or more
    state, norm = fold[1:]
    assert output[2:4] == (norm, state)
    if returned == "o, norm":
        assert norm == again[1].data_ptr()
    else:
        assert norm >= state + 4 * 3 * 8 and norm % 16 == 0
    assert not {*fold, *output} & {x.data_ptr() for x in results}, "addresses of the recording"


def test_results_that_nobody_wants_lie_with_scratch(launcher):
    made = launcher("o, norm")
    results, replay = record(made.run, tensors(), 1)
    assert len(results) == 2
    made.library.launches.clear()
    (o,) = replay.run(tensors())
    (*_, fold), (*_, output) = made.library.launches
    state, norm = fold[1:]
    assert output[2:] == (norm, state, o.data_ptr()) and norm >= state + 4 * 3 * 8


def test_a_call_off_its_alignment_or_listened_to_goes_the_long_way(launcher):
    made = launcher()
    _, replay = record(made.run, tensors())
    made.library.launches.clear()
    q, k = tensors()
    assert replay.run((torch.zeros(65)[1:].view(4, 16), k)) is None
    made.fold.heard = True
    assert replay.run((q, k)) is None
    assert made.library.launches == []


def test_a_replay_that_the_driver_refuses_says_what_it_said_and_stops(launcher):
    made = launcher()
    _, replay = record(made.run, tensors())
    made.library.launches.clear()
    made.library.answer = 701
    with pytest.raises(LaunchError, match=r"^launch: out of resources \(CUDA error 701\)$"):
        replay.run(tensors())
    assert len(made.library.launches) == 1


def test_a_launcher_that_computes_has_no_replay(launcher):
    text = TEXT.replace("    return", "    norm.zero_()\n    return")
    results, replay = record(launcher(text=text).run, tensors())
    assert replay is None and len(results) == 2


def test_a_launcher_that_returns_what_it_was_given_has_no_replay(launcher):
    _, replay = record(launcher("o, k").run, tensors())
    assert replay is None


def test_one_tensor_given_twice_has_no_replay(launcher):
    q, _ = tensors()
    _, replay = record(launcher().run, (q, q))
    assert replay is None


def test_a_launcher_without_kernels_of_ours_has_no_replay():
    results, replay = record(lambda q, k: q + k, tensors())
    assert replay is None and len(results) == 1
