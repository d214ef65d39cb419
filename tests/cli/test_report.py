"""`attnc report`: one page that needs nothing else, and shows every candidate."""

from __future__ import annotations

import re

import pytest

from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.tuning.tune import tune
from attnc.ops.verification.draw import Shape


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    op = compile_op(shipped()["flash_alibi"])
    (result,) = tune(
        op, [Shape(1, 20, 20, 1, 1, 16, 16)], dtypes=["fp32"], phases=["forward"], device="cpu",
        budget_s=0.1,
    )  # fmt: skip
    return result


def test_the_page_stands_alone_and_names_every_candidate(attnc, tuned, tmp_path):
    done = attnc("report", "-o", str(tmp_path / "page.html"))
    assert done.status == 0, done.err
    text = (tmp_path / "page.html").read_text()
    assert "1 tuned kernels" in done.out
    assert not re.search(r"(src|href)=", text)
    for trial in tuned.trials:
        assert trial.label in text
    timed = [trial for trial in tuned.trials if trial.samples]
    assert text.count("<circle") == 2 * len(timed)
    assert "def flash_alibi_online(" in text
    assert "flash_alibi forward, fp32" in text


def test_what_stands_in_a_run_is_escaped(attnc, tuned, tmp_path):
    from attnc.autotune.tuning_store import TuningStore
    from attnc.cli.report import page

    (run,) = TuningStore().runs()
    text = page([{**run, "variant": "<script>alert(1)</script>"}])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_without_a_run_it_says_what_makes_one(attnc, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "empty"))
    done = attnc("report", "-o", str(tmp_path / "page.html"))
    assert done.status == 64
    assert "nothing was tuned here" in done.err
    assert "attnc tune NAME --shape B,T,H,K,V measures something" in done.err
