"""A package holds what a launcher needs, and the same bytes whenever it is written."""

from __future__ import annotations

import hashlib
import json

import pytest

from attnc.autotune.package import PackagedModule, write_package
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.kernel_spec import Argument, KernelSpec

SPEC = KernelSpec(
    "based_state",
    (
        Argument("q", "*bf16", divisible16=True),
        Argument("T", "i32"),
        Argument("K", "constexpr", value=16),
    ),
    num_warps=4,
    num_stages=2,
)


def compiled(target: str, binary: bytes, seconds: float = 1.0) -> Compiled:
    parsed = Target.parse(target)
    return Compiled(
        kernel=SPEC.name,
        target=parsed,
        shared_bytes=8192,
        registers=128,
        spill_stores=0,
        spill_loads=4,
        num_warps=4,
        num_stages=2,
        binary=binary,
        extension=parsed.extension,
        name="based_state_entry",
        seconds=seconds,
        ptx=None,
    )


def module(seconds: float = 1.0) -> PackagedModule:
    kernels = (
        (SPEC, compiled("cuda:90", b"ninety", seconds)),
        (SPEC, compiled("hip:gfx942", b"amd", seconds)),
    )
    return PackagedModule("based chunked", "answer = 42\n", "d1", kernels, (("form", "chunked"),))


def test_the_manifest_names_every_file_with_its_digest_and_its_needs(tmp_path):
    path = write_package(tmp_path, [module()])
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "manifest.json"
    assert manifest["triton"] == triton_version()
    (entry,) = manifest["modules"]
    assert entry["variant_digest"] == "d1"
    assert entry["facts"] == {"form": "chunked"}
    assert entry["source"]["file"] == "based_chunked.py"
    files = [entry["source"], *entry["kernels"]]
    assert sorted(f["file"] for f in files) == sorted(
        f.name for f in tmp_path.iterdir() if f != path
    )
    for file in files:
        data = (tmp_path / file["file"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    first = entry["kernels"][0]
    assert first["file"] == "based_chunked.based_state.cuda-90.cubin"
    del first["sha256"], first["file"]
    assert first == {
        "kernel": "based_state",
        "target": "cuda:90",
        "entry": "based_state_entry",
        "parameters": None,
        "shared_bytes": 8192,
        "scratch_bytes": 0,
        "registers": 128,
        "spill_store_bytes": 0,
        "spill_load_bytes": 4,
        "num_warps": 4,
        "num_stages": 2,
        "arguments": [
            {"name": "q", "type": "*bf16", "divisible16": True, "multiple": 1, "value": None},
            {"name": "T", "type": "i32", "divisible16": False, "multiple": 1, "value": None},
            {"name": "K", "type": "constexpr", "divisible16": False, "multiple": 1, "value": 16},
        ],
    }


def test_the_same_modules_give_the_same_bytes_wherever_and_whenever(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b" / "deep"
    write_package(first, [module(seconds=1.0)])
    write_package(second, [module(seconds=9.0)])
    for _ in range(2):
        assert {f.name: f.read_bytes() for f in first.iterdir()} == {
            f.name: f.read_bytes() for f in second.iterdir()
        }
        write_package(second, [module()])


def test_two_modules_of_one_name_with_different_content_are_a_bug(tmp_path):
    other = PackagedModule("based chunked", "answer = 43\n", "d2", ())
    with pytest.raises(AssertionError, match=r"two files of a package are named based_chunked\.py"):
        write_package(tmp_path, [module(), other])
