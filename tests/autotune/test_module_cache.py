"""Emitted modules on disk: named by content, whole, and never run once altered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attnc.autotune.module_cache import cache_directory, load_module, store_module
from attnc.errors import CacheError
from tests.test_house import ROOT

SOURCE = '"""A module."""\n\nanswer = 42\n'


def test_the_same_source_is_stored_once_under_its_digest(cache):
    first, second = store_module(SOURCE, "flash online/1"), store_module(SOURCE, "flash online/1")
    assert first == second
    assert first.parent == cache / "modules"
    assert first.name.startswith("flash_online_1_")
    assert first.read_text(encoding="utf-8") == SOURCE
    assert store_module(SOURCE + "\n", "flash online/1") != first


def test_a_loaded_module_is_loaded_once_and_leaves_no_bytecode():
    path = store_module(SOURCE, "once")
    module = load_module(path)
    assert module.answer == 42
    assert module.__file__ == str(path)
    assert load_module(path) is module
    assert not (path.parent / "__pycache__").exists()


def test_an_altered_file_is_refused_and_storing_it_again_mends_it():
    path = store_module(SOURCE, "altered")
    path.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    with pytest.raises(CacheError) as caught:
        load_module(path)
    digest = path.stem.removeprefix("altered_")
    assert str(caught.value).splitlines()[0] == (
        f"error[A402]: {path} was altered after attnc wrote it"
    )
    assert f"its name says {digest}" in str(caught.value)
    assert load_module(store_module(SOURCE, "altered")).answer == 42


def test_a_file_altered_after_it_was_loaded_is_refused_too():
    path = store_module(SOURCE, "later")
    load_module(path)
    path.write_text("answer = 41\n", encoding="utf-8")
    with pytest.raises(CacheError, match="was altered"):
        load_module(path)


def test_a_file_that_is_no_stored_module_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    with pytest.raises(CacheError, match="is not a stored module"):
        load_module(path)


def test_a_missing_file_is_an_error_of_ours():
    path = store_module(SOURCE, "missing")
    path.unlink()
    with pytest.raises(CacheError, match="cannot read"):
        load_module(path)


def test_a_module_that_raises_on_import_can_be_loaded_again():
    path = store_module("raise RuntimeError('no')\n", "raises")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            load_module(path)
    assert f"attnc_emitted_{path.stem}" not in sys.modules


def test_a_cache_that_cannot_be_written_says_which_variable_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="set ATTNC_CACHE_DIR"):
        store_module(SOURCE, "nowhere")


def test_without_the_variable_the_users_cache_folder_is_used(monkeypatch):
    monkeypatch.delenv("ATTNC_CACHE_DIR")
    assert cache_directory().name == "attnc"


def test_eight_processes_storing_and_loading_one_module_all_see_it_whole(tmp_path):
    script = """
import sys
from attnc.autotune.module_cache import load_module, store_module
source = "values = [" + "1, " * 30_000 + "]\\n"
sys.stdin.readline()
for _ in range(8):
    path = store_module(source, "large")
    assert len(load_module(path).values) == 30_000
    path.unlink(missing_ok=True)
    store_module(source, "large")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    # another process may unlink between store and load; what it may not see is half a file
    assert [e for e in errors if e and "cannot read" not in e] == []
    assert list(cache_directory().glob("modules/.*.tmp")) == []
