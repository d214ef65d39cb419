"""Calls like an earlier one: what a key tells apart, and what is never remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from attnc.dsl import loads
from attnc.ops import launched, seen_calls
from attnc.ops import op as op_module
from attnc.ops.op import compile as compile_op
from attnc.ops.seen_calls import SeenCall, SeenCalls, call_key
from attnc.ops.shipped import shipped


@pytest.fixture(autouse=True)
def fakes_are_plain(monkeypatch):
    monkeypatch.setattr(seen_calls, "PLAIN", {*seen_calls.PLAIN, SimpleNamespace})


def fake(shape=(1, 8, 2, 64), dtype=torch.bfloat16, device="cuda:0", stride=(1024, 128, 64, 1)):
    return SimpleNamespace(
        is_cuda=True, shape=torch.Size(shape), dtype=dtype, device=torch.device(device),
        stride=lambda: stride,
    )  # fmt: skip


def test_a_key_tells_apart_shapes_strides_dtypes_devices_options_and_tensors():
    q = fake()
    keys = [
        call_key(q, q, q, None, {}),
        call_key(fake((1, 9, 2, 64)), q, q, None, {}),
        call_key(q, fake(dtype=torch.float16), q, None, {}),
        call_key(q, q, fake(device="cuda:1"), None, {}),
        call_key(q, fake(stride=(1024, 64, 512, 1)), q, None, {}),
        call_key(q, q, q, "lse", {}),
        call_key(q, q, q, None, {"slope": fake((2,))}),
        call_key(q, q, q, None, {"slope": fake((2,), torch.float32)}),
        call_key(q, q, q, None, {"bias": fake((2,))}),
    ]
    assert None not in keys and len(set(keys)) == len(keys)
    assert call_key(fake(), fake(), fake(), None, {}) == keys[0]


def test_a_number_for_a_tensor_a_cpu_and_autocast_have_no_key(monkeypatch):
    q = fake()
    assert call_key(q, q, q, None, {"gain": 0.5}) is None
    monkeypatch.setattr(seen_calls, "PLAIN", {torch.Tensor})
    assert call_key(q, q, q, None, {}) is None, "its type dispatches by itself"
    monkeypatch.setattr(seen_calls, "PLAIN", {SimpleNamespace})
    cpu = torch.zeros(1, 8, 2, 64)
    assert call_key(cpu, cpu, cpu, None, {}) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert call_key(q, q, q, None, {}) is None


def test_a_call_that_is_listened_to_or_transformed_has_no_key():
    class Listening(TorchDispatchMode):
        pass

    q = fake()
    assert call_key(q, q, q, None, {}) is not None
    with Listening():
        assert call_key(q, q, q, None, {}) is None

    def mapped(x):
        assert call_key(q, q, q, None, {}) is None
        return x

    torch.vmap(mapped)(torch.zeros(2))


def test_what_was_seen_before_tuning_answered_is_chosen_anew():
    seen = SeenCalls()
    seen.add("key", print, ("slope",), 3)
    assert seen.find("key", 3).names == ("slope",)
    assert seen.find("key", 4) is None
    assert seen.find(None, 3) is None


def test_lengths_that_never_repeat_do_not_fill_memory():
    seen = SeenCalls()
    for n in range(3000):
        seen.add(n, print, ())
    assert len(seen._by_key) <= 1024


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_a_call_whose_tensors_were_converted_is_not_remembered(kind, monkeypatch):
    """The launcher would get them unconverted the next time, and read whole numbers as fp32."""
    text = """
[packed]
feature_map = "softmax"
scale = 0.25
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }
"""
    op = compile_op(loads(text)["packed"])
    q = torch.zeros(1, 8, 1, 16)
    built = SimpleNamespace(run=print, plan=op.plan(dim=(16, 16)), taking_like=lambda *_: built)
    monkeypatch.setattr(op_module, "call_key", lambda *_: "key")
    monkeypatch.setattr(op.built_plans, "find", lambda *_, **__: built)
    monkeypatch.setattr(launched, "launch", lambda *_: [q, q[..., 0].transpose(1, 2)])
    op(q, q, q, ids=torch.zeros(1, 8, dtype=kind))
    found = op._seen.find("key", op_module.generation())
    assert (found is None) == (kind is torch.int64)


def test_a_remembered_call_goes_straight_to_the_launcher(monkeypatch):
    op = compile_op(shipped()["lightning"])
    q, slope = torch.zeros(1, 8, 2, 16), torch.zeros(2)
    given = []
    monkeypatch.setattr(op_module, "call_key", lambda *_: "key")
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: "key")
    monkeypatch.setattr(seen_calls, "run_on", lambda _, run, arguments: run(*arguments))
    op._seen.add("key", lambda *x: given.append(x) or q, ("slope",), op_module.generation())
    with torch.no_grad():
        assert op(q, q, q, slope=slope) is q
    ((*_, last),) = given
    assert last is slope
    # a call that needs a gradient is not a launcher's to answer
    leaf = torch.randn(1, 8, 2, 16, requires_grad=True)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: None)
    out = op(leaf, q, q, slope=slope)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: "key")
    again = op(leaf, q, q, slope=slope)
    assert out.requires_grad and again.requires_grad and again is not q
    assert len(given) == 1


def test_a_call_is_recorded_the_second_time_and_replayed_from_the_third_on(monkeypatch):
    ran, replayed = [], []
    replay = SimpleNamespace(run=lambda arguments: replayed.append(arguments) or None)

    def recorded(run, arguments, wanted):
        assert wanted == 2
        return (run(*arguments),), replay

    monkeypatch.setattr(seen_calls, "record", recorded)
    call = SeenCall(lambda x: ran.append(x) or x, (), 0, 2)
    assert call.answer((1,)) == (1,) and replayed == []
    # a replay that may not answer gives way to the launcher
    assert call.answer((2,)) == (2,) and replayed == [(2,)]
    replay.run = lambda arguments: ("again",)
    assert call.answer((3,)) == ("again",)
    assert ran == [1, 2]
    # another thread has buffers of its own to record
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(call.answer, (4,)).result() == (4,)
    assert ran == [1, 2, 4]


@pytest.fixture
def guarded(monkeypatch):
    """What answers a call like the latest one: the guard alone, keys find nothing."""
    calls = SeenCalls()
    q, k, v = (torch.zeros(1, 8, 2, 64) for _ in range(3))
    slope = torch.zeros(2)
    monkeypatch.setattr(seen_calls, "run_on", lambda _, run, arguments: run(*arguments))
    monkeypatch.setattr(seen_calls, "record", lambda run, given, _: (run(*given), None))
    # the device of a CPU's tensors has no index
    monkeypatch.setattr(seen_calls, "current_device", lambda: None)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: "key")
    calls.add("key", lambda *given: given, ("slope",), 5)

    def answer(q=q, k=k, v=v, options="some", generation=5, **tensors):
        return calls.answer(q, k, v, options, tensors or {"slope": slope}, generation)

    assert answer() == (q, k, v, slope)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: None)
    assert answer() == (q, k, v, slope), "the guard answers where a key finds nothing"
    return answer


def test_the_guard_of_the_latest_call_tells_apart_all_that_a_key_does(guarded):
    q = torch.zeros(1, 8, 2, 64)
    apart = torch.zeros(1, 2, 8, 64).transpose(1, 2)
    for other in (q[:, :7], apart, q.half(), q.to("meta"), q.clone().requires_grad_()):
        assert guarded(q=other) is None
    assert guarded(v=apart) is None
    assert guarded(options="other") is None and guarded(generation=6) is None
    slope = torch.zeros(2)
    assert guarded(slope=slope.double()) is None and guarded(slope=0.5) is None
    assert guarded(slope=torch.zeros(4)[::2]) is None
    assert guarded(bias=slope) is None and guarded(slope=slope, bias=slope) is None
    assert guarded(q=q, k=q) is None, "one tensor given twice"
    assert guarded(q=torch.nn.Parameter(q)) is None
    fresh = tuple(torch.ones(1, 8, 2, 64) for _ in range(3))
    assert guarded(*fresh, slope=slope) == (*fresh, slope)


def test_the_guard_holds_for_nobody_who_listens_or_transforms(guarded):
    class Listening(TorchDispatchMode):
        pass

    with Listening():
        assert guarded() is None
    with torch.autocast("cpu"):
        assert guarded() is None
    with torch.inference_mode():
        assert guarded() is None
    with FakeTensorMode() as mode:
        assert guarded(q=mode.from_tensor(torch.zeros(1, 8, 2, 64))) is None

    def mapped(x):
        assert guarded(q=x) is None
        assert guarded() is None
        return x

    torch.vmap(mapped)(torch.zeros(2, 1, 8, 2, 64))
    with forward_ad.dual_level():
        x = torch.zeros(1, 8, 2, 64)
        assert guarded(q=forward_ad.make_dual(x, x)) is None
    assert guarded() is not None


def test_a_leaf_is_answered_where_nobody_wants_its_gradient(guarded, monkeypatch):
    leaf = torch.zeros(1, 8, 2, 64, requires_grad=True)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: "key")
    with torch.no_grad():
        assert guarded(q=leaf) is not None
        monkeypatch.setattr(seen_calls, "call_key", lambda *_: None)
        assert guarded(q=leaf) is not None
    assert guarded(q=leaf) is None


def test_calls_of_two_shapes_in_turn_make_two_guards(monkeypatch):
    made = []
    guards = torch._C._dynamo.guards.TensorGuards
    monkeypatch.setattr(
        torch._C._dynamo.guards, "TensorGuards", lambda *x, **y: made.append(x) or guards(*x, **y)
    )
    monkeypatch.setattr(seen_calls, "run_on", lambda _, run, arguments: run(*arguments))
    monkeypatch.setattr(seen_calls, "record", lambda run, given, _: (run(*given), None))
    monkeypatch.setattr(seen_calls, "call_key", lambda q, *_: q.shape)
    calls = SeenCalls()
    for length in (8, 9):
        calls.add(torch.Size((1, length)), lambda *given, length=length: (length, *given), ())
    for _ in range(4):
        for length in (8, 9):
            q, k, v = (torch.zeros(1, length) for _ in range(3))
            assert calls.answer(q, k, v, None, {}) == (length, q, k, v)
    assert len(made) == 2


def test_declared_tensors_in_another_order_reach_the_launcher_in_its_own(monkeypatch):
    calls = SeenCalls()
    q, k, v, a, b = (torch.zeros(n + 1, 8, 2, 64) for n in range(5))
    monkeypatch.setattr(seen_calls, "run_on", lambda _, run, arguments: run(*arguments))
    monkeypatch.setattr(seen_calls, "record", lambda run, given, _: (run(*given), None))
    # the device of a CPU's tensors has no index
    monkeypatch.setattr(seen_calls, "current_device", lambda: None)
    monkeypatch.setattr(seen_calls, "call_key", lambda *_: "key")
    calls.add("key", lambda *given: given, ("a",))
    for _ in range(3):
        assert calls.answer(q, k, v, None, {"b": b, "a": a}) == (q, k, v, a)
