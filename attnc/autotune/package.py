"""Ahead-of-time packages: sources, binaries, and a manifest of what each kernel needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import attnc
from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.launcher import parameters
from attnc.autotune.verdict import Compiled
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.kernel_spec import KernelSpec

_FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class PackagedModule:
    """An emitted module to ship, with its kernels for every target they were compiled for.

    `name` becomes the files' prefix, `digest` is that of the variant called `variant`, and `facts`
    is whatever else a reader of the manifest should know of it: form, dtype, dims. A package that
    runs by itself has a `launcher` too, and `general` binaries for calls that break a promise.
    """

    name: str
    source: str
    digest: str
    kernels: tuple[tuple[KernelSpec, Compiled], ...]
    facts: tuple[tuple[str, Any], ...] = ()
    variant: str = ""
    launcher: str = ""
    general: tuple[tuple[KernelSpec, Compiled], ...] = ()


def write_package(
    directory: Path,
    modules: Sequence[PackagedModule],
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    launched_by: Mapping[str, Any] | None = None,
) -> Path:
    """Write sources and binaries, then the manifest that lists them; returns its path.

    `variants` says of each variant by name what a package that runs by itself has to know, and
    `launched_by` what launches its kernels.

    Each file appears whole or not at all, and equal modules give equal bytes: the manifest holds
    no time, host or path.
    """
    taken: dict[str, str] = {}
    entries = []
    for module in modules:
        source = module.source.encode("utf-8")
        source_file = _claim(taken, f"{_file_name(module.name)}.py", source)
        write_atomically(directory / source_file, source)
        entry: dict[str, Any] = {
            "name": module.name,
            "variant": module.variant,
            "variant_digest": module.digest,
            "facts": dict(module.facts),
            "source": {"file": source_file, "sha256": _sha256(source)},
            "kernels": [
                _write_kernel(directory, taken, module.name, spec, compiled)
                for spec, compiled in module.kernels
            ],
        }
        if module.launcher:
            launcher = module.launcher.encode("utf-8")
            file = _claim(taken, f"{_file_name(module.name)}.launcher.py", launcher)
            write_atomically(directory / file, launcher)
            entry["launcher"] = {"file": file, "sha256": _sha256(launcher)}
            entry["general"] = [
                _write_kernel(directory, taken, f"{module.name}.general", spec, compiled)
                for spec, compiled in module.general
            ]
        entries.append(entry)
    manifest = {
        "format": _FORMAT,
        "attnc": attnc.__version__,
        "triton": triton_version(),
        "modules": entries,
        **({"variants": dict(variants)} if variants else {}),
        **({"launched_by": dict(launched_by)} if launched_by else {}),
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
        # those of the compiler's own come last, and are null
        "parameters": None if compiled.ptx is None else parameters(compiled.ptx),
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
