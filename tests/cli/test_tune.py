"""`attnc tune`: what it refuses, what it prints, and how a store moves."""

from __future__ import annotations

import json

import pytest

from attnc.autotune.tuning_store import TuningStore
from attnc.cli.tune import seconds_of, shape_of
from attnc.errors import UsageError
from attnc.ops.shipped import convolutions, shipped
from attnc.ops.verification.convolution import FilterShape
from attnc.ops.verification.draw import Shape
from tests.autotune.test_tuning import ANSWER, DEVICE
from tests.ops.convolutions import CONVOLUTIONS


def test_a_shape_is_read_with_and_without_key_value_heads():
    flash = shipped()["flash"]
    assert shape_of("8,4096,16,128,64", flash) == Shape(8, 4096, 4096, 16, 16, 128, 64)
    assert shape_of("1,100,8,2,64,64", flash) == Shape(1, 100, 100, 8, 2, 64, 64)


def test_a_shape_of_a_convolution_has_the_taps_that_its_mask_shows():
    def taps(name: str, text: str) -> int:
        return shape_of(text, {**convolutions(), **CONVOLUTIONS}[name]).taps

    assert shape_of("8,100,4", convolutions()["hyena"]) == FilterShape.of(8, 100, 4, 100)
    assert taps("hyena", "8,100,4,7") == 7
    assert taps("short_conv", "8,100,4") == taps("short_conv", "8,100,4,50") == 4
    assert taps("both_sides", "8,100,4") == 101


@pytest.mark.parametrize("text", ["", "8,4096", "8,4096,16,3,64,64", "1,0,1,64,64", "a,b,c,d,e"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="--shape"):
        shape_of(text, shipped()["flash"])


@pytest.mark.parametrize(("name", "text"), [("hyena", "8,100"), ("hyena", "8,4096,16,128,64"),
    ("hyena", "8,0,4"), ("both_sides", "8,100,4,6"), ("hyena", "a,b,c")])  # fmt: skip
def test_what_is_no_shape_of_a_convolution_is_refused(name, text):
    with pytest.raises(UsageError, match="--shape"):
        shape_of(text, {**convolutions(), **CONVOLUTIONS}[name])


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2m", 120), ("90", 90), ("0.5s", 0.5)])
def test_a_budget_is_a_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "soon", "-3s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="is not a time"):
        seconds_of(text)


def test_without_a_gpu_it_says_so_and_what_else_there_is(attnc):
    done = attnc("tune", "flash", "--shape", "1,64,1,64,64")
    assert done.status == 64
    assert "there is no CUDA device here" in done.err
    assert "--device cpu times the interpreter" in done.err


def test_gluon_is_not_tuned_on_a_cpu(attnc):
    done = attnc("tune", "flash", "--shape", "1,256,1,64,64", "--device", "cpu",
                 "--backend", "gluon", "--forward")  # fmt: skip
    assert done.status == 2
    assert "gluon's kernels are timed on an sm_90 GPU alone, and the device is cpu" in done.err
    assert "attnc verify NAME --backend gluon runs them here, untimed" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--shape 1,64,1,300,64",
            "error[A300]: head dim K = 300 is outside 16 to 256\n  hint: split or pad the heads\n",
        ),
        (
            "--shape 1,64,1,64,64 --dtype e4m3",
            "error[A300]: 'e4m3' is no dtype that is tuned\n  note: those are fp16, bf16, fp32\n",
        ),
    ],
)
def test_what_no_call_takes_is_not_tuned(line, message, attnc):
    done = attnc("tune", "flash", "--device", "cpu", *line.split())
    assert (done.status, done.out.strip(), done.err) == (2, "", message)


def test_a_variant_alone_is_not_enough(attnc):
    done = attnc("tune", "flash")
    assert done.status == 64
    assert "tune wants a variant and a --shape B,T,H,K,V" in done.err


def test_a_store_is_exported_and_taken(attnc, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "here"))
    TuningStore().record(DEVICE, [ANSWER])
    done = attnc("tune", "--export", str(tmp_path / "h100.json"), "--device", DEVICE)
    assert done.status == 0
    assert f"1 tuned kernels of {DEVICE}" in done.out
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "there"))
    assert attnc("tune", "--import", str(tmp_path / "h100.json")).status == 0
    assert TuningStore().lookup(DEVICE, ANSWER.kernel, ANSWER.bucket) == ANSWER


def test_tuning_on_a_cpu_reports_every_candidate_as_json(attnc, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    done = attnc(
        "tune", "flash_window", "--device", "cpu", "--shape", "1,20,1,16,16", "--dtype", "fp32",
        "--budget", "0.1s", "--forward", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    (found,) = json.loads(done.out)
    timed = [trial for trial in found["trials"] if trial["ms"] is not None]
    assert 1 <= len(timed) <= 10
    assert found["answer"]["ms"] in {trial["ms"] for trial in timed}
    assert all(trial["problem"] for trial in found["trials"] if trial["ms"] is None)


def test_a_convolution_is_tuned_by_the_same_command_and_reported(attnc, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    done = attnc(
        "tune", "long_conv", "--device", "cpu", "--shape", "3,40,1", "--dtype", "fp32",
        "--budget", "0.1s", "--forward", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    (found,) = json.loads(done.out)
    assert found["shape"] == "B=3 T=40 C=1 taps=40"
    timed = [trial["candidate"] for trial in found["trials"] if trial["ms"] is not None]
    # blocks and transforms raced each other; the third form is of another order of work
    assert {text.partition(":")[0] for text in timed} == {"toeplitz", "fft"}
    refused = {t["problem"] for t in found["trials"] if t["candidate"][:13] == "filter_spread"}
    assert "not measured: predicted to take 20 times as long as the first" in refused
    assert attnc("report", "-o", tmp_path / "report.html").status == 0
    assert "weight w[c, i-j]" in (tmp_path / "report.html").read_text(encoding="utf-8")
