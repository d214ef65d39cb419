"""The bar shows what takes longer than two seconds, on a terminal, and nothing else."""

from __future__ import annotations

import time

import pytest

from attnc.cli import progress
from attnc.cli.progress import Waiting


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.05)


def test_work_that_takes_long_is_shown_with_how_far_it_is(terminal, capsys):
    with Waiting("compiling") as waiting:
        waiting.update(0, 4)
        time.sleep(0.3)
        waiting.update(3, 4, "compiling [the last]")
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "compiling" in err
    assert "3/4" in err
    assert "[the last]" in err


def test_work_that_is_quick_shows_nothing(terminal, capsys):
    with Waiting("compiling") as waiting:
        waiting.update(1, 1)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.01)
    with Waiting("compiling") as waiting:
        time.sleep(0.1)
        waiting.update(1, 2)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_bar(terminal, capsys):
    with pytest.raises(ValueError, match="no"), Waiting("compiling"):
        time.sleep(0.2)
        raise ValueError("no")
    assert "compiling" in capsys.readouterr().err
