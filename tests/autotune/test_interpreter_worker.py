"""The interpreter's worker: killed, aborted, interrupted, shared, forked, orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from attnc.autotune.interpreter import worker_pid
from attnc.errors import WorkerError
from tests.autotune.test_interpreter import plain
from tests.test_house import ROOT


def test_a_worker_killed_in_the_midst_of_a_call_is_an_error_and_the_next_call_works():
    plain("same", 1)
    pid = worker_pid()
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        plain("nap", 60)
    assert time.monotonic() - start < 20
    assert "was killed by SIGKILL while it ran nap" in str(caught.value)
    assert "run out of memory" in str(caught.value)
    assert plain("same", 3) == (3,)
    assert worker_pid() != pid


def test_a_worker_killed_between_calls_is_replaced():
    plain("same", 1)
    pid = worker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker_pid() is None)
    assert plain("same", 4) == (4,)


def test_the_last_words_of_a_worker_that_aborts_are_in_the_error():
    with pytest.raises(WorkerError) as caught:
        plain("abort")
    assert "was killed by SIGABRT" in str(caught.value)
    assert "note: LLVM ERROR: out of tea" in str(caught.value)


def test_a_call_that_is_interrupted_takes_its_worker_along(interruptible):
    plain("same", 1)
    pid = worker_pid()
    main = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        plain("nap", 60)
    assert not alive(pid)
    assert plain("same", 5) == (5,)


def test_threads_share_one_worker_and_each_gets_its_own_answer():
    answers: dict[int, tuple[int, ...]] = {}

    def call(index: int) -> None:
        answers[index] = plain("same", index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {index: (index,) for index in range(8)}


SCRIPT = """
import os, sys
import triton            # chosen to compile, long before attnc is asked for anything
import torch
from attnc.autotune import interpreter
from attnc.autotune.interpreter import run_interpreted, worker_pid
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import ADD, PLAIN

path = store_module(ADD, "add")
x, y = torch.randn(2, 100)
before = dict(os.environ)
assert torch.equal(run_interpreted(path, "forward", (x, y), {}), x + y)
assert dict(os.environ) == before and "TRITON_INTERPRET" not in before
assert isinstance(triton.language.standard.sum, triton.runtime.jit.JITFunction)
pid, mode = run_interpreted(store_module(PLAIN, "plain"), "process", (), {})
assert pid == worker_pid() != os.getpid() and mode == "1"

child = os.fork()
if child == 0:
    assert worker_pid() is None
    assert torch.equal(run_interpreted(path, "forward", (x, y), {}), x + y)
    own = worker_pid()
    interpreter._INTERPRETER.close()
    os._exit(0 if own != pid else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(run_interpreted(path, "forward", (x, y), {}), x + y)
assert worker_pid() == pid
print(pid, *interpreter._INTERPRETER._exchange.folders)
"""


@pytest.mark.rest(keep=2)
@pytest.mark.parametrize("way", ["script", "stdin"])
def test_an_unguarded_program_that_imported_triton_and_forks_leaves_nothing_behind(way, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, *([str(script)] if way == "script" else ["-"])]
    done = subprocess.run(
        command,
        input=SCRIPT if way == "stdin" else None,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    pid, *folders = done.stdout.split()
    assert not alive(int(pid))
    assert [folder for folder in folders if Path(folder).exists()] == []


def test_a_worker_whose_parent_is_killed_ends_and_removes_its_files(tmp_path):
    script = """
import os, signal, threading
from attnc.autotune import interpreter
from attnc.autotune.interpreter import run_interpreted, worker_pid
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import PLAIN
path = store_module(PLAIN, "plain")
run_interpreted(path, "same", (1,), {})
print(worker_pid(), *interpreter._INTERPRETER._exchange.folders, flush=True)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
run_interpreted(path, "nap", (60,), {})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, *folders = done.stdout.split()
    wait_until(lambda: not alive(int(pid)))
    assert [folder for folder in folders if Path(folder).exists()] == []


def test_a_source_checkout_on_sys_path_alone_is_enough(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from attnc.autotune.interpreter import run_interpreted
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import ADD
x = torch.ones(3)
print(run_interpreted(store_module(ADD, "add"), "forward", (x, x), {{}}).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[2.0, 2.0, 2.0]\n", done.stderr


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.02)
