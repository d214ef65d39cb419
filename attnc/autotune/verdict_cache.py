"""Verdicts on disk, so that the same kernel is compiled for a target once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.module_cache import cache_directory
from attnc.autotune.target import Target
from attnc.autotune.verdict import Verdict, verdict_from_json, verdict_to_json
from attnc.codegen.kernel_spec import KernelSpec

# counts up with every change to what a verdict holds or how it is obtained
_FORMAT = 1


def verdict_key(source: bytes, kernel: KernelSpec, target: Target) -> str:
    """The digest of all that decides a verdict: source, spec, target and Triton's version."""
    facts = [
        _FORMAT,
        triton_version(),
        hashlib.sha256(source).hexdigest(),
        asdict(kernel),
        str(target),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


def read_verdict(key: str) -> Verdict | None:
    """The verdict stored under a key; None where there is none that can be read."""
    try:
        return verdict_from_json(json.loads(_path(key).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_verdict(key: str, verdict: Verdict) -> None:
    """Keep a verdict for other processes and other days; a cache that cannot be written is none."""
    try:
        write_atomically(_path(key), json.dumps(verdict_to_json(verdict)).encode("utf-8"))
    except OSError:
        return


@cache
def triton_version() -> str:
    """The version of the Triton installed, without importing it where that is possible."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        import triton

        return str(triton.__version__)


def _path(key: str) -> Path:
    return cache_directory() / "verdicts" / key[:2] / f"{key}.json"
