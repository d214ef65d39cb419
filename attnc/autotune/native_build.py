"""The launcher in C, compiled once a machine by the compiler that Triton needs as well.

The sources lie in `native/`, are of CPython's stable ABI and link nothing: one file runs on every
Python from 3.10 on, of this platform.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.launcher import load_native
from attnc.autotune.module_cache import cache_directory

NATIVE_FILE = "native_launch.abi3.so"
# of wheels that hold it: Py_LIMITED_API in native_launch.c
PYTHON_TAG = "cp310-abi3"
_SOURCES = ("call.h", "kernel.h", "native_launch.c")
# the launches of many calls run through it, and its time is that of the driver: no -O3
_FLAGS = ("-O2", "-fPIC", "-shared", "-s", "-Wl,--build-id=none")


@dataclass(frozen=True, slots=True)
class Native:
    """The launcher in C as a file and as a module, or why there is none."""

    file: Path | None = None
    module: ModuleType | None = None
    why_not: str = ""


@cache
def native_launcher() -> Native:
    """The one of this machine, compiled where it was not yet; looked for once a process.

    ATTNC_LAUNCHER=ctypes leaves it out.
    """
    if os.environ.get("ATTNC_LAUNCHER") == "ctypes":
        return Native(why_not="ATTNC_LAUNCHER=ctypes")
    try:
        path = _compiled()
    except OSError as error:
        return Native(why_not=str(error))
    try:
        return Native(path, load_native(path))
    except ImportError as error:
        return Native(why_not=f"it does not load: {error}".replace(str(path), path.name))


def platform_tag() -> str:
    """What a wheel that holds it says of the platform it runs on."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _compiled() -> Path:
    """The file, out of the cache or made now.

    Raises: OSError where there is no compiler, or it refuses.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise OSError("a Python without a GIL has no stable ABI")
    folder = files("attnc") / "autotune" / "native"
    known = hashlib.sha256(sysconfig.get_platform().encode())
    for name in _SOURCES:
        known.update((folder / name).read_bytes())
    path = cache_directory() / "native" / known.hexdigest()[:32] / NATIVE_FILE
    if _whole(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not _whole(path):
            with as_file(folder) as sources, tempfile.TemporaryDirectory() as scratch:
                data = _compile(sources, Path(scratch) / NATIVE_FILE)
            write_atomically(path, data)
            write_atomically(_digest_of(path), hashlib.sha256(data).hexdigest().encode())
    return path


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _whole(path: Path) -> bool:
    """Whether it is there as it was written: to load less would end the process."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return _digest_of(path).read_text() == digest
    except OSError:
        return False


def _compile(sources: Path, path: Path) -> bytes:
    # some distributions name one folder in their scheme and put Python.h into the other
    headers = {sysconfig.get_paths()["include"], sysconfig.get_config_var("INCLUDEPY")}
    command = [*_compiler(), *_FLAGS, *(f"-I{folder}" for folder in sorted(filter(None, headers))),
               "-o", str(path), str(sources / "native_launch.c")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # without the places, which are those of this machine
        said = [line.partition("error: ")[2] for line in done.stderr.splitlines()]
        why = next(filter(None, said), f"status {done.returncode}")
        raise OSError(f"{Path(command[0]).name} refuses it: {why}")
    return path.read_bytes()


def _compiler() -> list[str]:
    """CC, or what Triton would take."""
    chosen = os.environ.get("CC")
    if chosen:
        return shlex.split(chosen)
    found = next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    if found is None:
        raise OSError("there is no C compiler: neither CC nor gcc, clang or cc")
    return [found]
