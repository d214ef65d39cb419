"""Ahead-of-time packages: sources, binaries, and a manifest of what each kernel needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import attnc
from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.verdict import Compiled
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.kernel_spec import KernelSpec

_FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class PackagedModule:
    """An emitted module to ship, with its kernels for every target they were compiled for.

    `name` becomes the files' prefix, `digest` is the variant's, and `facts` is whatever else a
    reader of the manifest should know of it: form, dtype, dims.
    """

    name: str
    source: str
    digest: str
    kernels: tuple[tuple[KernelSpec, Compiled], ...]
    facts: tuple[tuple[str, str | int | float | bool], ...] = ()


def write_package(directory: Path, modules: Sequence[PackagedModule]) -> Path:
    """Write sources and binaries, then the manifest that lists them; returns its path.

    Each file appears whole or not at all, and equal modules give equal bytes: the manifest holds
    no time, host or path.
    """
    taken: dict[str, str] = {}
    entries = []
    for module in modules:
        source = module.source.encode("utf-8")
        source_file = _claim(taken, f"{_file_name(module.name)}.py", source)
        write_atomically(directory / source_file, source)
        entries.append(
            {
                "name": module.name,
                "variant_digest": module.digest,
                "facts": dict(module.facts),
                "source": {"file": source_file, "sha256": _sha256(source)},
                "kernels": [
                    _write_kernel(directory, taken, module.name, spec, compiled)
                    for spec, compiled in module.kernels
                ],
            }
        )
    manifest = {
        "format": _FORMAT,
        "attnc": attnc.__version__,
        "triton": triton_version(),
        "modules": entries,
    }
    path = directory / MANIFEST
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8"))
    return path


def _write_kernel(
    directory: Path, taken: dict[str, str], prefix: str, spec: KernelSpec, compiled: Compiled
) -> dict[str, Any]:
    assert spec.name == compiled.kernel, f"{compiled.kernel} was not compiled from {spec.name}"
    target = str(compiled.target).replace(":", "-")
    name = f"{_file_name(prefix)}.{spec.name}.{target}.{compiled.extension}"
    file = _claim(taken, name, compiled.binary)
    write_atomically(directory / file, compiled.binary)
    return {
        "kernel": spec.name,
        "target": str(compiled.target),
        "file": file,
        "sha256": _sha256(compiled.binary),
        "entry": compiled.name,
        "shared_bytes": compiled.shared_bytes,
        "scratch_bytes": compiled.scratch_bytes,
        "registers": compiled.registers,
        "spill_store_bytes": compiled.spill_stores,
        "spill_load_bytes": compiled.spill_loads,
        "num_warps": compiled.num_warps,
        "num_stages": compiled.num_stages,
        # the ABI: what the launcher passes, in order, and what was promised of it
        "arguments": [asdict(argument) for argument in spec.arguments],
    }


def _claim(taken: dict[str, str], name: str, data: bytes) -> str:
    digest = _sha256(data)
    assert taken.setdefault(name, digest) == digest, f"two files of a package are named {name}"
    return name


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".") or "module"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
