"""Emitted modules run on CPU tensors, by Triton's interpreter in a worker process.

Triton chooses between compiling and interpreting when it is imported, and the caller may have
imported it long ago; the worker is a process where it is imported to interpret. There is one for
each process of the caller's, started by the first call and ended with the caller.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnc.autotune.exchange import Exchange
from attnc.autotune.module_cache import read_verified
from attnc.autotune.triton_here import require_triton
from attnc.autotune.worker_process import WorkerDied, WorkerProcess
from attnc.errors import Where, WorkerError

_MODULE = "attnc.autotune.interpreter_worker"
# tiles are too small to share out, and many test processes may each have a worker
_ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def run_interpreted(
    path: Path,
    function: str,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    written: Sequence[int] = (),
) -> Any:
    """What a function of a stored module returns, interpreted on CPU tensors.

    Arguments and results are tensors of any strides, numbers, text, None, and tuples of these.
    The tensors at the places `written` come back as the kernels left them; to all other arguments
    what a kernel writes is lost. What the function allocates as floating point starts as NaN, so an
    element that no kernel writes is seen.

    Raises: WorkerError where the function raises, with its place in the emitted module, or where
    the worker dies; InputError for a value that cannot be sent; CacheError for an altered module;
    TritonMissing.
    """
    return _INTERPRETER.run(Path(path).absolute(), function, args, kwargs, written)


def worker_pid() -> int | None:
    """The process id of the worker, once there is one."""
    return _INTERPRETER.pid


class _Interpreter:
    """This process's worker and the exchange with it; one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._exchange: Exchange | None = None

    @property
    def pid(self) -> int | None:
        worker = self._worker
        return worker.pid if worker is not None and worker.alive else None

    def run(
        self,
        path: Path,
        function: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        written: Sequence[int],
    ) -> Any:
        read_verified(path)
        require_triton("running kernels on a CPU")
        with self._lock:
            worker, exchange = self._ready()
            try:
                packed = exchange.pack(args)
                reply = worker.ask(
                    {
                        "path": str(path),
                        "function": function,
                        "args": packed,
                        "kwargs": exchange.pack(kwargs),
                    }
                )
                if "error" in reply:
                    raise _raised(reply["error"], path, function)
                for place in written:
                    tensor = args[place]
                    assert isinstance(tensor, torch.Tensor), "only tensors are written to"
                    tensor.copy_(exchange.unpack(packed["tuple"][place], copy=False))
                return exchange.unpack(reply["result"], copy=True)
            except WorkerDied as death:
                raise _died(death, path, function) from None
            finally:
                exchange.clear()

    def close(self) -> None:
        """End the worker and remove the files."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
            if self._exchange is not None:
                self._exchange.remove()
            self._worker = self._exchange = None

    def forget(self) -> None:
        """In a forked child: the worker is the parent's, and so are the files."""
        self._lock = threading.Lock()
        if self._worker is not None:
            self._worker.abandon()
        self._worker = self._exchange = None

    def _ready(self) -> tuple[WorkerProcess, Exchange]:
        if self._worker is not None and self._worker.alive and self._exchange is not None:
            return self._worker, self._exchange
        if self._exchange is not None:
            self._exchange.remove()
        self._exchange = Exchange.create()
        folders = [str(folder) for folder in self._exchange.folders]
        self._worker = WorkerProcess(_MODULE, folders, _ENVIRONMENT)
        return self._worker, self._exchange


def _raised(error: dict[str, Any], path: Path, function: str) -> WorkerError:
    frames = tuple(f"{path}:{line}, in {name}: {text}" for line, name, text in error["frames"])
    where = None
    if error["line"]:
        where = Where(
            text=error["text"], length=len(error["text"]), file=str(path), line=error["line"]
        )
    notes = frames or tuple("".join(error["traceback"]).splitlines()[-8:])
    return WorkerError(
        f"{function} failed in the interpreter: {error['message']}", where=where, notes=notes
    )


def _died(death: WorkerDied, path: Path, function: str) -> WorkerError:
    hints: tuple[str, ...] = ("the next call starts a new worker",)
    if death.code == -9:
        hints = ("it may have run out of memory: try a smaller input", *hints)
    return WorkerError(
        f"the interpreter's worker {death.reason} while it ran {function} of {path.name}",
        notes=death.tail,
        hints=hints,
    )


_INTERPRETER = _Interpreter()
atexit.register(_INTERPRETER.close)
os.register_at_fork(after_in_child=_INTERPRETER.forget)
