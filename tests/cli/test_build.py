"""`attnc build`: a package, with no GPU."""

from __future__ import annotations

import hashlib
import json

from attnc.cli.build import Order
from attnc.ops.shipped import shipped


def test_a_package_has_source_binary_and_manifest(attnc, tmp_path):
    folder = tmp_path / "package"
    done = attnc("build", "linear", "--target", "cuda:80", "-o", folder)
    assert (done.status, done.err) == (0, "")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (module,) = manifest["modules"]
    assert module["name"] == "linear_bf16_64x64_cuda80"
    assert module["variant_digest"] == shipped()["linear"].digest
    assert module["facts"]["form"] == "chunked"
    assert module["facts"]["target"] == "cuda:80"
    source = (folder / module["source"]["file"]).read_bytes()
    assert hashlib.sha256(source).hexdigest() == module["source"]["sha256"]
    names = [kernel["kernel"] for kernel in module["kernels"]]
    assert names == ["linear_state", "linear_scan", "linear_output"]
    for kernel in module["kernels"]:
        binary = (folder / kernel["file"]).read_bytes()
        assert binary.startswith(b"\x7fELF")
        assert kernel["file"].endswith(".cubin")
        assert kernel["shared_bytes"] <= 166912
        assert kernel["registers"] > 0
        assert kernel["spill_store_bytes"] >= 0
        assert f"{kernel['kernel']} " in done.out
        assert f" {kernel['shared_bytes']:,} " in done.out
    assert f"modules 1, kernels 3, in {folder / 'manifest.json'}" in done.out


def test_a_second_build_gives_the_same_bytes(attnc, tmp_path):
    for folder in ("one", "two"):
        assert attnc("build", "linear", "--target", "cuda:80", "-o", tmp_path / folder).status == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_targets_dims_and_dtypes_are_built_with_each_other():
    order = Order(("cuda:80", "cuda:90", "cuda:80"), ("64", "128"), ("bf16", "fp16"))
    facts = [(item.device, item.dim, item.dtype) for item in order.facts()]
    assert len(facts) == len(set(facts)) == 8
    assert Order(("cuda:80",)).facts()[0].dtype == "bf16"


def test_two_variants_of_one_name_are_not_built_into_one_package(attnc, declare):
    file = declare('[flash]\nfeature_map = "softmax"\nscale = 0.5\n')
    done = attnc("build", "flash", file, "--target", "cuda:80", "-o", "out")
    assert done.status == 64
    assert done.err == (
        "error[A500]: two different variants are called 'flash'\n"
        "  note: a package names its files after its variants\n"
        "  hint: rename one, or build them into two folders\n"
    )


def test_a_package_is_not_written_over_a_file(attnc, declare):
    file = declare('[mine]\nfeature_map = "softmax"\nscale = 0.5\n')
    done = attnc("build", file, "--target", "cuda:80", "-o", file)
    assert done.status == 64
    assert done.err == "error[A500]: mine.toml is a file, and a package is a folder\n"
