"""Verdicts on disk, so that the same kernel is compiled for a target once."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.module_cache import cache_directory
from attnc.autotune.target import Target
from attnc.autotune.triton_here import require_triton
from attnc.autotune.verdict import Verdict, verdict_from_json, verdict_to_json
from attnc.codegen.kernel_spec import KernelSpec

# counts up with every change to what a verdict holds or how it is obtained
_FORMAT = 2


def verdict_key(source: bytes, kernel: KernelSpec, target: Target) -> str:
    """The digest of all that decides a verdict: its text, spec, target and Triton's version.

    `source` is the module's; other kernels of it, and its launcher, decide nothing.
    """
    facts = [
        _FORMAT,
        triton_version(),
        hashlib.sha256(kernel_text(source, kernel.name)).hexdigest(),
        asdict(kernel),
        str(target),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


def kernel_text(source: bytes, name: str) -> bytes:
    """A kernel of a module with what it may refer to: imports, constants and helpers (`_name`)."""
    lines = source.splitlines(keepends=True)
    kept = []
    for node in ast.parse(source).body:
        start = node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if node.name != name and not node.name.startswith("_"):
                continue
            start = min([start, *(decorator.lineno for decorator in node.decorator_list)])
        elif isinstance(node, ast.Expr):
            continue  # the docstring
        kept += lines[start - 1 : node.end_lineno]
    return b"".join(kept)


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
        require_triton("compiling kernels")
        import triton

        return str(triton.__version__)


def _path(key: str) -> Path:
    return cache_directory() / "verdicts" / key[:2] / f"{key}.json"
