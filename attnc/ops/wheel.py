"""A package of binaries as a wheel: what runs it is copied from here, so it needs no attnc."""

from __future__ import annotations

import base64
import hashlib
import keyword
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import attnc
from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.native_build import NATIVE_FILE, PYTHON_TAG, Native, platform_tag
from attnc.autotune.package import MANIFEST, PackagedModule, write_package
from attnc.codegen.text.template import render_text
from attnc.dsl.convolution import Convolution, Filter
from attnc.dsl.variant import Variant
from attnc.errors import UsageError

# what a package runs on, by the folder it stands in here; it imports nothing else of ours
VENDORED = (
    ("", "errors"),
    ("dsl", "butterfly"),
    ("dsl", "offsets"),
    ("autotune", "launcher"),
    ("autotune", "binary_kernel"),
    ("autotune", "replay"),
    ("ops", "autograd"),
    ("ops", "batching"),
    ("ops", "convolution_autograd"),
    ("ops", "convolution_inputs"),
    ("ops", "dft_factors"),
    ("ops", "filter_call"),
    ("ops", "given_tensors"),
    ("ops", "gradients"),
    ("ops", "inputs"),
    ("ops", "near"),
    ("ops", "operators"),
    ("ops", "package_folder"),
    ("ops", "packaged_filter"),
    ("ops", "packaged_op"),
    ("ops", "seen_calls"),
    ("ops", "tap_transforms"),
)
_IMPORT = re.compile(r"^from attnc(?:\.ops|\.autotune|\.dsl)?\.(\w+) import", re.MULTILINE)
_TYPING_ONLY = re.compile(r"^if TYPE_CHECKING:\n(?:    .*\n)+\n*", re.MULTILINE)
_TYPING_IMPORT = re.compile(r"^(from typing import .*?)(?:TYPE_CHECKING, |, TYPE_CHECKING)", re.M)
_ALONE = re.compile(r"^from typing import TYPE_CHECKING\n", re.M)
# a wheel's bytes do not depend on when it was made
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_wheel(
    folder: Path,
    name: str,
    modules: Sequence[PackagedModule],
    variants: Sequence[Variant],
    native: Native,
) -> Path:
    """Write `NAME-VERSION-TAG.whl` into a folder; equal modules give equal bytes.

    With the launcher in C it is a wheel of this platform, and without one of any.
    """
    check_name(name)
    tag = "py3-none-any" if native.file is None else f"{PYTHON_TAG}-{platform_tag()}"
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / name
        facts = {v.name: _facts(v) for v in variants}
        manifest = write_package(package, modules, facts, _launcher(package, native))
        contents = {f"{name}/{path.name}": path.read_bytes() for path in package.iterdir()}
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert f"{name}/{MANIFEST}" in contents, "a package has a manifest"
    for place, module in VENDORED:
        text = (files("attnc") / place / f"{module}.py").read_text(encoding="utf-8")
        contents[f"{name}/{module}.py"] = vendored(text).encode()
    ops = [
        {"name": v.name, "summary": v.summary, "filters": isinstance(v, Convolution)}
        for v in variants
    ]
    first = render_text(
        "wheel_init.jinja", name=name, version=attnc.__version__, ops=ops, digest=digest
    )
    contents[f"{name}/__init__.py"] = first.encode()
    path = folder / f"{name}-{attnc.__version__}-{tag}.whl"
    write_atomically(path, _zip(name, contents, tag))
    return path


def _launcher(package: Path, native: Native) -> dict[str, Any]:
    """What the manifest says of the launcher, whose file is put beside it."""
    if native.file is None:
        return {"kind": "ctypes", "why": native.why_not}
    data = native.file.read_bytes()
    write_atomically(package / NATIVE_FILE, data)
    digest = hashlib.sha256(data).hexdigest()
    return {"kind": "c", "file": NATIVE_FILE, "sha256": digest, "platform": platform_tag()}


def check_name(name: str) -> None:
    """Refuse what is no name for a package.

    Raises:
        UsageError: a name that Python cannot import, or that is taken.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name in {"attnc", "torch", "triton"}:
        raise UsageError(
            f"--wheel {name!r} is no name for a package",
            hints=("letters, digits and underscores, for example --wheel my_kernels",),
        )


def vendored(text: str) -> str:
    """A module of ours as it stands in a wheel: beside its neighbours, with no types of ours."""
    text = _TYPING_ONLY.sub("\n", text)
    text = _ALONE.sub("", _TYPING_IMPORT.sub(r"\1", text))
    return _IMPORT.sub(r"from .\1 import", text)


def _facts(variant: Variant) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "digest": variant.digest,
        "summary": variant.summary,
        "family": variant.family,
        "normalize": variant.normalize,
        "mask_tensors": list(variant.mask_tensors),
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "grad": t.grad, "kind": t.kind}
            for t in (*variant.params, *variant.inputs)
        ],
    }
    if isinstance(variant, Convolution):
        facts["filter"] = _filter_facts(variant.filter)
    return facts


def _filter_facts(found: Filter) -> dict[str, Any]:
    named = (("weight", found.weight), ("outer", found.outer), ("inner", found.inner))
    return {
        **{field: None if ref is None else ref.name for field, ref in named},
        "lowest": found.lowest,
        "highest": found.highest,
        "transforms": [[transform.name, transform.value] for transform in found.transforms],
    }


def _zip(name: str, contents: Mapping[str, bytes], tag: str) -> bytes:
    info = f"{name}-{attnc.__version__}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {attnc.__version__}\n"
        f"Summary: Attention kernels as binaries, built by attnc {attnc.__version__}\n"
        "Requires-Python: >=3.10\nRequires-Dist: torch>=2.4\n"
    )
    pure = str(tag.endswith("-any")).lower()
    wheel = f"Wheel-Version: 1.0\nGenerator: attnc\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    everything = {
        **dict(sorted(contents.items())),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": wheel.encode(),
    }
    record = [f"{path},sha256={_hash(data)},{len(data)}" for path, data in everything.items()]
    record.append(f"{info}/RECORD,,")
    everything[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in everything.items():
                entry = zipfile.ZipInfo(path, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        file.seek(0)
        return file.read()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
