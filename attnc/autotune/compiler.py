"""Kernels compiled ahead of time: no GPU, several workers, and every verdict kept on disk."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attnc.autotune.module_cache import read_verified
from attnc.autotune.target import KNOWN_TARGETS, Target
from attnc.autotune.triton_here import require_triton
from attnc.autotune.verdict import Compiled, CompileFailure, Verdict, verdict_from_json
from attnc.autotune.verdict_cache import read_verdict, store_verdict, verdict_key
from attnc.autotune.worker_process import WorkerDied, WorkerProcess
from attnc.codegen.kernel_spec import KernelSpec

__all__ = [
    "KNOWN_TARGETS",
    "CompileFailure",
    "CompileJob",
    "CompilePool",
    "Compiled",
    "Target",
    "Verdict",
    "compile_kernels",
]

_MODULE = "attnc.autotune.compile_worker"
_ABORT = -6

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CompileJob:
    """A kernel of a stored module, and what to compile it for."""

    path: Path
    kernel: KernelSpec
    target: Target


def compile_kernels(
    path: Path,
    kernels: Sequence[KernelSpec],
    target: Target,
    *,
    jobs: int = 2,
    progress: Progress | None = None,
) -> list[Verdict]:
    """The compiler's verdict on each kernel of a stored module, in order.

    `progress` is called with how many of the kernels are done, and how many there are.

    Raises: CacheError where the module is missing or was altered.
    """
    with CompilePool(jobs) as pool:
        return pool.map([CompileJob(path, kernel, target) for kernel in kernels], progress)


class CompilePool:
    """Up to `jobs` compiling processes, started when a job needs one and kept until the end.

    A job whose verdict is on disk needs none. A compiler that aborts loses its own process only:
    its job fails, and the next job gets a new process.
    """

    def __init__(self, jobs: int = 2) -> None:
        self._seats = [_Seat(index) for index in range(max(1, jobs))]
        self._scratch: Path | None = None

    def __enter__(self) -> Self:
        require_triton("compiling kernels")
        self._scratch = Path(tempfile.mkdtemp(prefix="attnc-compile-"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for seat in self._seats:
            seat.close()
        assert self._scratch is not None, "the pool was entered"
        shutil.rmtree(self._scratch, ignore_errors=True)

    def map(self, jobs: Sequence[CompileJob], progress: Progress | None = None) -> list[Verdict]:
        """The verdict on each job, in order; equal jobs are compiled once.

        Raises: CacheError where a module is missing or was altered.
        """
        assert self._scratch is not None, "use the pool in a with statement"
        keys = [
            verdict_key(read_verified(job.path.absolute()), job.kernel, job.target) for job in jobs
        ]
        work = _Work(dict(zip(keys, jobs, strict=True)), keys, progress)
        threads = [
            threading.Thread(target=seat.work, args=(work, self._scratch), daemon=True)
            for seat in self._seats[: work.left]
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            work.stop()
            for seat in self._seats:
                seat.kill()
            raise
        return work.results(keys)


class _Work:
    """The jobs not yet done, the verdicts so far, and what went wrong with asking."""

    def __init__(
        self, jobs: dict[str, CompileJob], keys: Sequence[str], progress: Progress | None
    ) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._verdicts = {key: kept for key in jobs if (kept := read_verdict(key)) is not None}
        self._left = deque((key, job) for key, job in jobs.items() if key not in self._verdicts)
        self._times = {key: keys.count(key) for key in jobs}
        self._total = len(keys)
        self._error: BaseException | None = None
        self._report()

    @property
    def left(self) -> int:
        return len(self._left)

    def take(self) -> tuple[str, CompileJob] | None:
        with self._lock:
            return self._left.popleft() if self._left else None

    def put(self, key: str, verdict: Verdict) -> None:
        with self._lock:
            self._verdicts[key] = verdict
            self._report()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._left.clear()

    def stop(self) -> None:
        with self._lock:
            self._left.clear()

    def results(self, keys: Sequence[str]) -> list[Verdict]:
        if self._error is not None:
            raise self._error
        return [self._verdicts[key] for key in keys]

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(sum(self._times[key] for key in self._verdicts), self._total)


class _Seat:
    """A place for one worker, which is replaced when it dies."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._worker: WorkerProcess | None = None

    def work(self, work: _Work, scratch: Path) -> None:
        """Take jobs until there are none."""
        try:
            while (taken := work.take()) is not None:
                key, job = taken
                verdict, lasting = self._ask(job, scratch / str(self._index))
                if lasting:
                    store_verdict(key, verdict)
                work.put(key, verdict)
        except BaseException as error:
            work.fail(error)

    def close(self) -> None:
        if self._worker is not None and self._worker.alive:
            self._worker.close()
        self._worker = None

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()

    def _ask(self, job: CompileJob, scratch: Path) -> tuple[Verdict, bool]:
        """The verdict, and whether it would be the same tomorrow."""
        if self._worker is None or not self._worker.alive:
            self._worker = WorkerProcess(_MODULE, [str(scratch)], {"TRITON_INTERPRET": None})
        request: dict[str, Any] = {
            "path": str(job.path.absolute()),
            "kernel": asdict(job.kernel),
            "target": str(job.target),
        }
        try:
            reply = self._worker.ask(request)
        except WorkerDied as death:
            failure = CompileFailure(
                kernel=job.kernel.name,
                target=job.target,
                message=f"the compiler {death.reason}",
                tail=death.tail,
                aborted=True,
            )
            return failure, death.code == _ABORT
        if "error" not in reply:
            return verdict_from_json(reply), True
        detail = (*reply["detail"], *self._worker.tail())
        failure = CompileFailure(job.kernel.name, job.target, reply["error"], detail)
        return failure, bool(reply["lasting"])
