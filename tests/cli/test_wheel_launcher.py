"""What launches a wheel's kernels: the launcher in C, or ctypes, and how one learns which."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from attnc.autotune.native_build import NATIVE_FILE, native_launcher
from attnc.ops.wheel import platform_tag
from tests.cli.test_wheel import bare

BUILD = (sys.executable, "-m", "attnc", "build", "linear", "--target", "cuda:80", "--dim", "16",
         "--wheel", "my_kernels")  # fmt: skip
needs_c = pytest.mark.skipif(native_launcher().module is None, reason=native_launcher().why_not)


def built(folder: Path, *options: str) -> Path:
    done = subprocess.run([*BUILD, *options, "-o", str(folder)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def unpacked(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def launched_by(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("my_kernels/manifest.json"))["launched_by"]


@needs_c
def test_a_wheel_with_the_launcher_in_c_is_of_this_platform(wheel, unpacked):
    tag = f"cp310-abi3-{platform_tag()}"
    assert wheel.name.endswith(f"-{tag}.whl") and tag.endswith("linux_x86_64")
    (facts,) = unpacked.glob("*.dist-info/WHEEL")
    assert f"Root-Is-Purelib: false\nTag: {tag}\n" in facts.read_text()
    assert launched_by(wheel)["kind"] == "c"
    # pip takes the name apart, and refuses what does not fit this interpreter
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pip._vendor.packaging.tags import sys_tags; "
         "print({str(tag) for tag in sys_tags()} >= {sys.argv[1]})", tag],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode or done.stdout == "True\n"


@needs_c
def test_it_is_loaded_with_no_path_and_an_op_says_so(unpacked):
    done = bare(unpacked, "print(my_kernels._PACKAGE.native().Call, my_kernels.linear)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<class 'native_launch.Call'> ")
    assert done.stdout.endswith(f"launched by C ({platform_tag()})>\n")


@needs_c
@pytest.mark.parametrize("how", ["truncated", "altered", "swapped", "missing"])
def test_one_that_is_not_the_one_built_is_refused(how, unpacked):
    path = unpacked / "my_kernels" / NATIVE_FILE
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        other = Path(json.__file__).read_bytes()
        changed = {"truncated": data[:-1], "altered": data[:-1] + b"~", "swapped": other}
        path.write_bytes(changed[how])
    done = bare(unpacked, "my_kernels._PACKAGE.native()\nprint('loaded')")
    assert done.returncode == 1 and done.stdout == ""
    wanted = "cannot read" if how == "missing" else "was altered after it was built"
    assert wanted in done.stderr and NATIVE_FILE in done.stderr


@needs_c
def test_one_that_does_not_load_gives_way_to_ctypes_with_a_warning(unpacked):
    script = """
import warnings

def refuse(path):
    raise ImportError("wrong ELF class")

my_kernels.package_folder.load_native = refuse
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(my_kernels._PACKAGE.native(), *(str(w.message) for w in seen))
"""
    done = bare(unpacked, script)
    assert done.stdout == (
        "None my_kernels launches by ctypes, some microseconds slower: wrong ELF class\n"
    ), done.stderr


def test_a_wheel_for_any_platform_launches_by_ctypes_and_says_why(tmp_path):
    wheel = built(tmp_path, "--any-platform")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert launched_by(wheel) == {"kind": "ctypes", "why": "--any-platform"}
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path)
    done = bare(tmp_path, "print(my_kernels._PACKAGE.native(), my_kernels.linear)")
    assert done.stdout.startswith("None ") and done.stdout.endswith(
        "launched by ctypes: --any-platform>\n"
    )


def test_any_platform_without_a_wheel_is_refused(attnc):
    done = attnc("build", "linear", "--target", "cuda:80", "--any-platform", "-o", "out")
    assert (done.status, done.err.splitlines()[0]) == (
        64, "error[A500]: --any-platform is for a wheel",
    )  # fmt: skip
