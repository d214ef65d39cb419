"""The launcher in C: made once, and what is said where it cannot be."""

from __future__ import annotations

import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import pytest

from attnc.autotune import native_build
from attnc.autotune.native_build import native_launcher
from attnc.ops import built as built_module


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No cache of files, and none of this process."""
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return native_launcher.__wrapped__


def compiler():
    found = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return found or pytest.skip("no C compiler here")


def test_it_is_compiled_once_for_many_at_a_time(fresh, monkeypatch):
    compiler()
    runs = []
    compile_one = native_build._compile
    monkeypatch.setattr(
        native_build, "_compile", lambda *given: runs.append(given) or compile_one(*given)
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fresh(), range(4)))
    assert len(runs) == 1 and len({native.file for native in found}) == 1
    assert {native.why_not for native in found} == {""}
    assert fresh().module.Kernel and len(runs) == 1


def test_equal_sources_give_equal_bytes(fresh, tmp_path, monkeypatch):
    compiler()
    first = fresh().file.read_bytes()
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "other"))
    assert fresh().file.read_bytes() == first


def test_it_asks_nothing_of_an_interpreter_but_its_stable_abi(fresh):
    compiler()
    name = fresh().file.name
    assert name.endswith(".abi3.so") and sysconfig.get_config_var("SOABI") not in name


def test_without_a_compiler_there_is_none_and_it_says_so(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = fresh()
    assert (found.file, found.module) == (None, None)
    assert found.why_not == "there is no C compiler: neither CC nor gcc, clang or cc"


def test_it_can_be_left_out(fresh, monkeypatch):
    monkeypatch.setenv("ATTNC_LAUNCHER", "ctypes")
    assert fresh() == native_build.Native(why_not="ATTNC_LAUNCHER=ctypes")


def test_a_compiler_that_refuses_is_named_with_its_words(fresh, monkeypatch):
    monkeypatch.setenv("CC", f"{compiler()} -DPy_LIMITED_API=nonsense -include nowhere.h")
    found = fresh()
    assert found.module is None and "refuses it: " in found.why_not
    assert "nowhere.h" in found.why_not and "/" not in found.why_not


def test_a_file_that_was_altered_is_made_anew(fresh):
    compiler()
    path = fresh().file
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-100])
    assert fresh().module is not None and path.read_bytes() == data


def test_a_file_that_does_not_load_is_none(fresh, monkeypatch):
    monkeypatch.setattr(native_build, "_compile", lambda *_: b"no library")
    found = fresh()
    assert found.module is None and found.why_not.startswith("it does not load: native_launch")


def test_ops_say_once_that_they_launch_by_ctypes(fresh, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(built_module, "native_launcher", fresh)
    built_module._native.cache_clear()
    assert built_module._native() is None and built_module._native() is None
    built_module._native.cache_clear()
    assert capsys.readouterr().err == (
        "attnc: launching by ctypes, some microseconds slower: there is no C compiler: neither CC "
        "nor gcc, clang or cc\n"
    )


def test_what_is_no_kernel_and_no_call_is_refused_before_it_runs():
    native = native_launcher().module
    if native is None:
        pytest.skip(native_launcher().why_not)
    with pytest.raises(ValueError, match=r"8 lies outside \[0, 8\)"):
        native.Kernel(1, 0, 7, 128, 0, bytes(8), (8,), (), ())
    with pytest.raises(ValueError, match="outside"):
        native.Kernel(1, 0, 7, 128, 0, bytes(8), (0,), (1,), (0,))
    with pytest.raises(ValueError, match="outside"):
        native.Kernel(1, 0, 7, 128, 0, bytes(64), (0,), (0,), (1,))
    with pytest.raises(ValueError, match="no kernel has"):
        native.Kernel(1, 0, 7, 128, 0, bytes(1 << 16), (), (), ())
    kernel = native.Kernel(1, 0, 7, 128, 0, bytes(16), (0, 8), (0, 8), (0, 0))
    with pytest.raises(TypeError, match="1 addresses for 2 tensors"):
        kernel.launch(1, 1, 1, 0, 16)

    def call(*steps):
        return native.Call(len, len, (), (), (), (), len, (), len, 1, steps)

    with pytest.raises(ValueError, match="1 places for 2 tensors"):
        call((kernel, 1, 1, 1, 0))
    with pytest.raises(ValueError, match=r"1 lies outside \[0, 1\)"):
        call((kernel, 1, 1, 1, 0, 1))
    with pytest.raises(TypeError, match="begins with a Kernel"):
        call((len, 1, 1, 1, 0, 0))
    with pytest.raises(TypeError, match="a tuple of 1 tensors"):
        call((kernel, 1, 1, 1, 0, 0)).run(())
