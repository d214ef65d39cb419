"""Emitted modules on disk, named by their content, and loaded only if the content still fits."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from platformdirs import user_cache_path

from attnc.autotune.atomic_file import write_atomically
from attnc.errors import CacheError

_DIGEST_LENGTH = 32
_NAME = re.compile(rf"(?P<name>\w*)_(?P<digest>[0-9a-f]{{{_DIGEST_LENGTH}}})\.py")
_LOCK = threading.RLock()


def cache_directory() -> Path:
    """The folder of everything attnc caches: ATTNC_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get("ATTNC_CACHE_DIR")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("attnc")


def store_module(source: str, name: str) -> Path:
    """Write the source into the cache, unless it is there; its digest is part of the file's name.

    `name` is a prefix for readers. Any number of processes may store the same source at once.
    """
    data = source.encode("utf-8")
    prefix = re.sub(r"\W+", "_", name, flags=re.ASCII)[:80] or "module"
    path = cache_directory() / "modules" / f"{prefix}_{_digest(data)}.py"
    try:
        if path.read_bytes() == data:
            return path
    except OSError:
        pass
    try:
        write_atomically(path, data)
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {error.strerror}",
            hints=("set ATTNC_CACHE_DIR to a folder that you can write to",),
        ) from error
    return path


def load_module(path: Path) -> ModuleType:
    """Import a stored module; a second call for the same path returns the same module.

    Raises: CacheError where the file is missing, or its content is not what its name says.
    """
    path = Path(path).absolute()
    source = read_verified(path)
    name = f"attnc_emitted_{path.stem}"
    with _LOCK:
        loaded = sys.modules.get(name)
        if loaded is not None and loaded.__file__ == str(path):
            return loaded
        loader = _VerifiedLoader(name, str(path), source)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None, f"{path} has no import spec"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module


def read_verified(path: Path) -> bytes:
    """The bytes of a stored module, once they are shown to have the digest in its name.

    Raises: CacheError where they have not, or there is no such file.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CacheError(
            f"{path} is not a stored module",
            notes=("its name must end in the digest of its content",),
            hints=("store_module(source, name) returns the path to load",),
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}") from error
    if _digest(data) != match["digest"]:
        raise CacheError(
            f"{path} was altered after attnc wrote it",
            notes=(f"its digest is {_digest(data)}, its name says {match['digest']}",),
            hints=("delete the file, and it is written anew",),
        )
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]


class _VerifiedLoader(SourceFileLoader):
    """Runs the bytes that were verified: no second read, and no .pyc that could be stale."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source, self.path)

    def get_data(self, path: str) -> bytes:
        return self._source
