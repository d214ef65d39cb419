"""Compiling with no GPU: what the compiler needs is stated, what it refuses is kept apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from attnc.autotune import compiler
from attnc.autotune.compiler import (
    Compiled,
    CompileFailure,
    CompileJob,
    CompilePool,
    Target,
    compile_kernels,
)
from attnc.autotune.module_cache import store_module
from attnc.autotune.verdict import verdict_from_json, verdict_to_json
from attnc.autotune.verdict_cache import read_verdict, verdict_key
from attnc.codegen.kernel_spec import Argument, KernelSpec
from attnc.errors import CacheError, CompileError
from tests.autotune.emitted import ABORTS, ADD, MATMUL, PLAIN, SPILLS
from tests.test_house import ROOT


def matmul_spec(dtype: str = "*bf16") -> KernelSpec:
    scalars = ("M", "N", "K", "stride_am", "stride_ak", "stride_bk", "stride_bn")
    return KernelSpec(
        "matmul_kernel",
        (
            *(Argument(name, dtype, divisible16=True) for name in ("a", "b", "o")),
            *(Argument(name, "i32") for name in scalars),
            Argument("BT", "constexpr", value=16),
        ),
        num_warps=4,
        num_stages=2,
    )


def add_spec(size: int = 64) -> KernelSpec:
    tensors = tuple(Argument(name, "*fp32", divisible16=True) for name in ("x", "y", "o"))
    return KernelSpec(
        "add_kernel",
        (*tensors, Argument("N", "i32"), Argument("BN", "constexpr", value=size)),
        num_warps=2,
        num_stages=1,
    )


@pytest.fixture(scope="module")
def matmul() -> Path:
    return store_module(MATMUL, "matmul")


@pytest.fixture(scope="module")
def verdicts(matmul) -> dict[str, Compiled]:
    targets = ["cuda:80", "cuda:90", "hip:gfx942"]
    with CompilePool() as pool:
        found = pool.map([CompileJob(matmul, matmul_spec(), Target.parse(t)) for t in targets])
    return {str(verdict.target): verdict for verdict in found}


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])
def test_a_cubin_states_its_shared_memory_registers_and_spills(verdicts, target):
    verdict = verdicts[target]
    # two tiles of 16 x 16 bf16, and no more than a second stage of them
    assert 1024 <= verdict.shared_bytes <= 2048
    assert 16 <= verdict.registers <= 255
    assert (verdict.spill_stores, verdict.spill_loads) == (0, 0)
    assert (verdict.num_warps, verdict.num_stages) == (4, 2)
    assert verdict.binary.startswith(b"\x7fELF")
    assert (verdict.extension, verdict.name, verdict.scratch_bytes) == ("cubin", "matmul_kernel", 0)
    assert ".target sm_" + target.removeprefix("cuda:") in verdict.ptx
    assert verdict.seconds > 0


def test_a_code_object_for_amd_states_the_same(verdicts):
    verdict = verdicts["hip:gfx942"]
    assert 0 < verdict.shared_bytes <= 2048
    assert 8 <= verdict.registers <= 512
    assert (verdict.spill_stores, verdict.spill_loads) == (0, 0)
    assert (verdict.extension, verdict.ptx) == ("hsaco", None)
    assert verdict.binary.startswith(b"\x7fELF")


def test_a_binary_does_not_know_where_it_was_made(verdicts, cache):
    for verdict in verdicts.values():
        assert str(cache).encode() not in verdict.binary
        assert str(cache) not in (verdict.ptx or "")


def test_registers_that_do_not_suffice_show_as_spills():
    path = store_module(SPILLS, "spills")
    tensors = tuple(Argument(name, "*fp32", divisible16=True) for name in ("x", "o"))
    spec = KernelSpec(
        "spills_kernel", (*tensors, Argument("BT", "constexpr", value=128)), 2, num_stages=1
    )
    (verdict,) = compile_kernels(path, [spec], Target.parse("cuda:80"))
    assert 64 <= verdict.registers <= 255
    assert verdict.spill_stores > 0
    assert verdict.spill_loads > 0


def test_a_verdict_on_disk_needs_no_worker(verdicts, matmul, monkeypatch):
    def no_worker(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(compiler, "WorkerProcess", no_worker)
    steps = []
    (again,) = compile_kernels(
        matmul, [matmul_spec()], Target.parse("cuda:90"), progress=lambda *step: steps.append(step)
    )
    assert again == verdicts["cuda:90"]
    assert steps == [(1, 1)]


def test_a_verdict_that_was_damaged_is_compiled_again(verdicts, matmul, cache):
    key = verdict_key(matmul.read_bytes(), matmul_spec(), Target.parse("cuda:80"))
    (file,) = cache.glob(f"verdicts/*/{key}.json")
    for damage in (b"", b"{}", b'{"Compiled": {"target": "cuda:80"}}', file.read_bytes()[:-40]):
        file.write_bytes(damage)
        assert read_verdict(key) is None
    (again,) = compile_kernels(matmul, [matmul_spec()], Target.parse("cuda:80"))
    assert again.binary == verdicts["cuda:80"].binary
    assert read_verdict(key) == again


def test_everything_that_decides_a_verdict_is_in_its_key():
    spec, target = add_spec(), Target.parse("cuda:80")
    first = b"@jit\ndef add_kernel(x):\n    x + _one()\n\n\ndef _one():\n    return 1\n"
    changes = [
        (first, spec, target),
        (first.replace(b"x + ", b"x - "), spec, target),
        (first.replace(b"return 1", b"return 2"), spec, target),
        (first.replace(b"@jit", b"@jit(fast)"), spec, target),
        (b"BIG = 4\n" + first, spec, target),
        (first, replace(spec, num_warps=4), target),
        (first, replace(spec, num_stages=4), target),
        (first, add_spec(128), target),
        (first, replace(spec, arguments=(replace(spec.arguments[0], divisible16=False),)), target),
        (first, spec, Target.parse("cuda:90")),
    ]
    assert len({verdict_key(*change) for change in changes}) == len(changes)


def test_other_kernels_launchers_and_headers_of_a_module_do_not_decide_a_verdict():
    spec, target = add_spec(), Target.parse("cuda:80")
    first = b"@jit\ndef add_kernel(x):\n    x + 1\n"
    more = b'"""A header."""\n\n' + first + b"\n\ndef forward(x):\n    add_kernel[1](x)\n"
    assert verdict_key(first, spec, target) == verdict_key(more, spec, target)


def test_a_verdict_survives_json(verdicts):
    failure = CompileFailure("k", Target.parse("cuda:90"), "no", ("a", "b"), aborted=True)
    for verdict in (*verdicts.values(), failure):
        assert verdict_from_json(json.loads(json.dumps(verdict_to_json(verdict)))) == verdict


def test_a_kernel_that_the_compiler_refuses_is_a_verdict_with_its_words(matmul):
    (verdict,) = compile_kernels(matmul, [matmul_spec("*i64")], Target.parse("cuda:90"))
    assert isinstance(verdict, CompileFailure)
    assert verdict.message == "CompilationError: Unsupported lhs dtype int64"
    assert not verdict.aborted
    assert any("tl.dot(b_a, b_b" in line for line in verdict.tail)
    error = verdict.error()
    assert isinstance(error, CompileError)
    assert str(error).startswith(
        "error[A401]: matmul_kernel does not compile for cuda:90: "
        "CompilationError: Unsupported lhs dtype int64"
    )


def test_a_spec_of_another_kernel_is_refused_with_both_argument_lists(matmul):
    spec = replace(add_spec(), name="matmul_kernel")
    (verdict,) = compile_kernels(matmul, [spec], Target.parse("cuda:80"))
    assert verdict.message == (
        "ValueError: the kernel takes a, b, o, M, N, K, stride_am, stride_ak, stride_bk, "
        "stride_bn, BT; its spec says x, y, o, N, BN"
    )


def test_a_compiler_that_aborts_loses_its_worker_and_its_job_only():
    add, aborts = store_module(ADD, "add"), store_module(ABORTS, "aborts")
    target = Target.parse("cuda:80")
    steps = []
    with CompilePool(jobs=1) as pool:
        verdicts = pool.map(
            [
                CompileJob(add, add_spec(), target),
                CompileJob(aborts, add_spec(), target),
                CompileJob(add, add_spec(128), target),
                CompileJob(add, add_spec(), target),
            ],
            lambda *step: steps.append(step),
        )
    first, failure, second, repeated = verdicts
    assert isinstance(first, Compiled)
    assert isinstance(second, Compiled)
    assert repeated == first
    assert failure == CompileFailure(
        "add_kernel",
        target,
        "the compiler was killed by SIGABRT",
        ("LLVM ERROR: out of tea",),
        aborted=True,
    )
    # the repeated job is done with the first
    assert steps == [(0, 4), (2, 4), (3, 4), (4, 4)]


def test_a_failure_of_the_machine_is_not_kept(matmul):
    path = store_module("import module_that_is_not_there\n", "unlucky")
    target = Target.parse("cuda:80")
    (verdict,) = compile_kernels(path, [add_spec()], target)
    assert verdict.message.startswith("ModuleNotFoundError")
    assert read_verdict(verdict_key(path.read_bytes(), add_spec(), target)) is None


def test_an_altered_module_is_not_compiled():
    path = store_module(PLAIN, "altered")
    path.write_text(ADD, encoding="utf-8")
    with pytest.raises(CacheError, match="was altered"):
        compile_kernels(path, [add_spec()], Target.parse("cuda:80"))


def test_compiling_works_from_an_unguarded_script_told_to_interpret_and_imports_no_torch():
    script = """
import sys
from attnc.autotune.compiler import Target, compile_kernels
from attnc.autotune.module_cache import store_module
from tests.autotune.emitted import ADD
from tests.autotune.test_compiler import add_spec
before = {"torch", "triton"} & set(sys.modules)
path = store_module(ADD, "script")
(verdict,) = compile_kernels(path, [add_spec()], Target.parse("cuda:86"))
print(verdict.registers > 0, before, {"torch", "triton"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True set() set()\n", done.stderr


def test_an_interrupted_map_ends_its_workers(monkeypatch, interruptible):
    slow = store_module("import time\ntime.sleep(60)\n", "slow")
    started = []
    worker_process = compiler.WorkerProcess

    def start(*arguments):
        started.append(worker_process(*arguments))
        return started[-1]

    timers = []

    def interrupt(done: int, total: int) -> None:
        # once: a second one would strike whatever test runs by then
        if not timers:
            main = threading.main_thread().ident
            timers.append(threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)))
            timers[0].start()

    monkeypatch.setattr(compiler, "WorkerProcess", start)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), CompilePool() as pool:
        pool.map([CompileJob(slow, add_spec(), Target.parse("cuda:80"))], interrupt)
    assert time.monotonic() - begin < 20
    assert [worker.alive for worker in started] == [False]
