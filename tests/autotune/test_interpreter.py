"""The worker that interprets: values there and back, and every way it can go wrong."""

from __future__ import annotations

import os

import pytest
import torch

from attnc.autotune import interpreter
from attnc.autotune.interpreter import run_interpreted, worker_pid
from attnc.autotune.module_cache import store_module
from attnc.errors import CacheError, InputError, WorkerError
from tests.autotune.emitted import ADD, FIRST_ROW, MATMUL, PLAIN, RAISES

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.bool,
]


def plain(function: str, *args: object, **kwargs: object):
    return run_interpreted(store_module(PLAIN, "plain"), function, args, kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_comes_back_equal(dtype):
    x = torch.randn(3, 5).mul(4).to(dtype)
    (back,) = plain("same", x)
    assert back.dtype == dtype
    assert torch.equal(back, x)


def test_every_layout_keeps_its_strides_on_the_way_there_and_back():
    base = torch.randn(4, 6, 8)
    layouts = [
        base,
        base.transpose(0, 2),
        base[1:3, ::2, 3:],
        base[:, 1],
        torch.randn(5).expand(4, 5),
        torch.randn(()),
        torch.empty(0, 7),
        torch.empty_strided((2, 3), (0, 1)).zero_(),
        torch.randn(12).as_strided((3, 4), (2, 1)),
    ]
    for x in layouts:
        dtype, shape, strides, contiguous, _ = plain("facts", x)
        assert (dtype, shape, strides) == (str(x.dtype), list(x.shape), list(x.stride()))
        assert contiguous == x.is_contiguous()
        (back,) = plain("same", x)
        assert back.stride() == x.stride()
        assert torch.equal(back, x)


def test_integers_wrap_around_as_they_do_on_a_gpu():
    x = torch.randint(-(2**31), 2**31, (100,), dtype=torch.int32)
    x[:2] = torch.tensor([2**31 - 1, -(2**31)])
    y = torch.full_like(x, 2**31 - 1)
    found = run_interpreted(store_module(ADD, "add"), "forward", (x, y), {})
    expected = (x.long() + y.long() + 2**31) % 2**32 - 2**31
    assert torch.equal(found.long(), expected)
    assert int(found[0]) == -2


def test_views_of_one_tensor_travel_as_one_region_and_apart_if_they_are_apart():
    packed = torch.randn(2, 8, 3, 16)
    q, k, _ = packed.unbind(2)
    assert plain("share", q, k)
    far = torch.zeros(1 << 20)
    assert not plain("share", far[:8], far[-8:])
    assert not plain("share", torch.zeros(8), torch.zeros(8))


def test_pointers_keep_their_alignment():
    x = torch.randn(64)
    assert plain("facts", x)[-1] == x.data_ptr() % 16
    assert plain("facts", x[1:])[-1] == x[1:].data_ptr() % 16


def test_scalars_text_none_and_nesting_pass_by_value():
    values = (1, -(1 << 62), 0.1, float("inf"), True, None, "tf32", (1, (2, None)), [3.5])
    back = plain("same", *values, named=(torch.bfloat16, "x"))
    assert back == (*values, {"named": (torch.bfloat16, "x")})
    assert type(back[4]) is bool


def test_parameters_that_require_grad_come_back_as_plain_tensors():
    (back,) = plain("same", torch.nn.Parameter(torch.randn(3)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_the_arguments_are_the_callers_own_and_stay_as_they_were():
    x = torch.ones(3)
    assert plain("overwrite", x) is None
    assert torch.equal(x, torch.ones(3))


def test_a_kernel_is_interpreted_over_ragged_blocks_and_any_strides():
    a, b = torch.randn(40, 70), torch.randn(33, 70).T
    out = run_interpreted(store_module(MATMUL, "matmul"), "forward", (a, b), {})
    # 70 products in fp32, in another order
    assert torch.allclose(out, a @ b, atol=1e-4)


def test_an_element_that_no_kernel_writes_is_nan():
    x = torch.randn(4, 40)
    path = store_module(FIRST_ROW, "first_row")
    written, *empty, nothing = run_interpreted(path, "forward", (x,), {})
    assert torch.equal(written[0], x[0])
    assert written[1:].isnan().all()
    assert all(tensor.isnan().all() for tensor in empty)
    assert nothing is None


def test_what_a_module_prints_or_reads_does_not_touch_the_protocol():
    out, read = plain("chatter", torch.zeros(2))
    assert torch.equal(out, torch.ones(2))
    assert read == ""


def test_an_exception_names_the_line_of_the_emitted_module():
    path = store_module(RAISES, "raises")
    with pytest.raises(WorkerError) as caught:
        run_interpreted(path, "forward", (torch.zeros(1),), {})
    text = str(caught.value)
    assert "forward failed in the interpreter: AssertionError: never so" in text
    line = RAISES.splitlines().index('    tl.static_assert(False, "never so")') + 1
    assert f"{path}:{line}" in text
    assert 'tl.static_assert(False, "never so")' in text
    assert "in raises_kernel" in text
    pid = worker_pid()
    assert plain("same", 1) == (1,)
    assert worker_pid() == pid, "an exception costs no worker"


def test_values_that_cannot_travel_are_refused_by_name():
    with pytest.raises(InputError, match="a object cannot go to the interpreter"):
        plain("same", object())
    with pytest.raises(InputError, match="not one on meta"):
        plain("same", torch.empty(2, device="meta"))
    with pytest.raises(InputError, match=r"no torch\.complex64 tensors"):
        plain("same", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(InputError, match="dense tensors"):
        plain("same", torch.zeros(2, 2).to_sparse())
    with pytest.raises(WorkerError, match="cannot go to the interpreter or come from it"):
        plain("strange")
    with pytest.raises(WorkerError, match="no attribute 'backward'"):
        plain("backward")
    assert plain("same", 2) == (2,)


def test_an_altered_module_is_refused_before_the_worker_sees_it():
    path = store_module(PLAIN + "# mine\n", "plain")
    path.write_text(PLAIN, encoding="utf-8")
    with pytest.raises(CacheError, match="was altered"):
        run_interpreted(path, "same", (1,), {})


def test_files_are_gone_after_a_call_and_when_there_is_no_room_it_is_said(monkeypatch):
    plain("same", torch.randn(1000))
    exchange = interpreter._INTERPRETER._exchange
    assert [list(folder.iterdir()) for folder in exchange.folders] == [[]] * len(exchange.folders)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorkerError) as caught:
        plain("same", torch.zeros(1000))
    assert "no room for a tensor of 4,000 bytes" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert [list(folder.iterdir()) for folder in exchange.folders] == [[]] * len(exchange.folders)


def test_two_results_of_one_call_are_memory_of_their_own():
    x = torch.randn(8)
    first, second = plain("same", x, x)
    assert first.data_ptr() != x.data_ptr()
    out = run_interpreted(store_module(ADD, "add"), "forward", (first, second), {})
    assert torch.equal(out, x + x)
