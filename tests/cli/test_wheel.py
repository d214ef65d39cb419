"""`attnc build --wheel`: what stands in it, what it needs, and what it refuses."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from attnc.ops.wheel import VENDORED, vendored

# what the package must do without: an import of it fails, and nobody finds it
BARE = """
import sys

for name in ("attnc", "triton"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import torch
import my_kernels
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, and what was printed of it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "attnc", "build", "linear", "flash_alibi", "--target",
               "cuda:80", "--dim", "16", "--wheel", "my_kernels", "-o", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path, done.stdout


@pytest.fixture(scope="module")
def wheel(built):
    return built[0]


def test_a_backward_with_gradients_of_declared_tensors_is_told_from_one_without(built):
    kernels = [
        line.split("cuda:80")[0].strip() for line in built[1].splitlines() if "cuda:" in line
    ]
    assert kernels.count("flash_alibi_dq") == kernels.count("flash_alibi_dq +slope") == 1


@pytest.fixture
def unpacked(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def bare(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script where attnc and Triton cannot be imported, and PATH is empty."""
    return subprocess.run(
        [sys.executable, "-c", BARE + script, str(folder)], capture_output=True, text=True,
        check=False, cwd=folder, env={**os.environ, "PATH": "", "PYTHONPATH": ""},
    )  # fmt: skip


def test_a_wheel_is_imported_with_no_attnc_no_triton_and_no_path(unpacked):
    done = bare(unpacked, "print(my_kernels.__all__, my_kernels.linear)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['linear', 'flash_alibi'] <linear: feature_map elu(x) + 1")
    assert "built for backward bf16 K=16 V=16 cuda:80; forward bf16 K=16" in done.stdout


def test_a_call_on_a_cpu_says_what_the_package_is_for(unpacked):
    script = """
q = torch.zeros(1, 8, 2, 16, dtype=torch.bfloat16)
try:
    my_kernels.linear(q, q, q)
except Exception as error:
    print(error)
"""
    done = bare(unpacked, script)
    assert done.stdout == (
        "error[A300]: q is on cpu; the package holds binaries for CUDA devices\n"
    ), done.stderr


def test_wrong_shapes_are_refused_as_attnc_refuses_them(unpacked):
    script = """
q = torch.zeros(1, 8, 2, 16)
try:
    my_kernels.flash_alibi(q, q, q)
except Exception as error:
    print(error)
"""
    assert "error[A300]: 'flash_alibi' needs param 'slope'" in bare(unpacked, script).stdout


@pytest.mark.parametrize("kind", ["cubin", "launcher.py", "json"])
@pytest.mark.parametrize("how", ["truncated", "altered", "swapped", "missing"])
def test_a_file_that_is_not_the_one_built_is_refused(kind, how, unpacked):
    first, second, *_ = sorted((unpacked / "my_kernels").glob(f"*.{kind}")) * 2
    data = first.read_bytes()
    if how == "missing":
        first.unlink()
    else:
        other = b"{}" if second == first else second.read_bytes()
        changed = {"truncated": data[:-1], "altered": data[:-1] + b"~", "swapped": other}
        first.write_bytes(changed[how])
    script = f"""
package = my_kernels._PACKAGE
for module in package.manifest["modules"]:
    for entry in (module["launcher"], *module["kernels"], *module["general"]):
        if entry["file"] == {first.name!r}:
            package.read(entry)
            print("read")
"""
    done = bare(unpacked, script)
    assert done.returncode == 1
    assert "read" not in done.stdout
    wanted = "cannot read" if how == "missing" else "was altered after it was built"
    assert wanted in done.stderr and first.name in done.stderr


def test_equal_builds_give_equal_bytes(wheel, tmp_path):
    command = [sys.executable, "-m", "attnc", "build", "linear", "flash_alibi", "--target",
               "cuda:80", "--dim", "16", "--wheel", "my_kernels", "-o", str(tmp_path)]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_manifest_states_the_abi_of_both_binaries_of_a_kernel(unpacked):
    manifest = json.loads((unpacked / "my_kernels" / "manifest.json").read_text())
    module = next(m for m in manifest["modules"] if m["name"] == "linear_bf16_16x16_cuda80")
    usual, general = module["kernels"][0], module["general"][0]
    assert usual["kernel"] == general["kernel"] == "linear_state"
    strides = {a["name"]: a for a in usual["arguments"] if a["name"].startswith("stride_k")}
    assert strides["stride_k_k"]["value"] == 1 and strides["stride_k_t"]["divisible16"]
    loose = [a for a in general["arguments"] if a["name"].startswith("stride")]
    assert {a["type"] for a in loose} == {"i64"}
    assert not any(a["divisible16"] for a in general["arguments"])
    for entry in (usual, general):
        taken = sum(a["type"] != "constexpr" for a in entry["arguments"])
        assert 0 <= entry["parameters"] - taken <= 2


def test_a_vendored_module_imports_its_neighbours_alone():
    folder = Path(__file__).parents[2] / "attnc"
    names = {name for _, name in VENDORED}
    assert len(names) == len(VENDORED)
    for place, name in VENDORED:
        tree = ast.parse(vendored((folder / place / f"{name}.py").read_text()))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 or node.module in names
                assert (node.module or "").partition(".")[0] not in {"attnc", "triton"}
            elif isinstance(node, ast.Import):
                assert not {a.name.partition(".")[0] for a in node.names} & {"attnc", "triton"}


def test_a_wheel_for_a_device_without_a_cuda_driver_is_refused(attnc):
    done = attnc("build", "flash", "--target", "hip:gfx942", "--wheel", "mine", "-o", "out")
    assert (done.status, done.err.splitlines()[0]) == (
        64, "error[A500]: a wheel launches through the CUDA driver, and hip:gfx942 has none",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["my-kernels", "attnc", "class", "1st"])
def test_a_name_that_python_cannot_import_is_refused(name, attnc):
    done = attnc("build", "flash", "--target", "cuda:80", "--wheel", name, "-o", "out")
    assert done.status == 64
    assert f"error[A500]: --wheel {name!r} is no name for a package" in done.err
