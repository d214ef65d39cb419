"""`attnc verify`: 0 where everything passes, 1 with the worst element named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attnc.ops.verification.report import Report, Row

GOOD = Row(
    what="online form",
    dtype="bf16",
    shape="B=1 T=63 H=2 D=64",
    error=0.001,
    bound=0.02,
    passed=True,
    worst_index=(0, 3, 1, 40),
    out_value=1.0,
    ref_value=1.001,
    reason="max|out - ref| = 0.001, bound 0.02",
)
BAD = replace(
    GOOD,
    error=0.5,
    passed=False,
    worst_index=(0, 62, 1, 7),
    out_value=0.25,
    ref_value=0.75,
    reason="max|out - ref| = 0.5, bound 0.02",
)


@pytest.fixture
def reports(monkeypatch):
    """Answer each variant with the next rows; returns the options it was asked with."""
    rows: list[tuple[Row, ...]] = []
    asked: list[dict[str, object]] = []

    def verify(variant, **options):
        options["progress"](1, 1, "done")
        asked.append(options)
        return Report(variant.name, "cpu, interpreted", 7, rows.pop(0))

    monkeypatch.setattr("attnc.ops.verification.verify.verify", verify)
    return rows, asked


def test_a_variant_that_passes_exits_0(attnc):
    done = attnc("verify", "flash", "--dtype", "bf16", "--seed", "3", "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["variant"], report["seed"], report["passed"]) == ("flash", 3, True)
    assert {row["dtype"] for row in report["rows"]} == {"bf16"}
    assert all(row["error"] <= row["bound"] for row in report["rows"])


def test_a_variant_that_fails_exits_1_and_names_the_worst_element(attnc, reports):
    reports[0].append((GOOD, BAD))
    done = attnc("verify", "flash")
    assert done.status == 1
    assert "FAILED flash: 1 of 2 comparisons\n" in done.out
    worst = next(line for line in done.out.splitlines() if line.startswith("worst element: "))
    assert "online form, bf16, B=1 T=63 H=2 D=64" in worst
    assert "[0, 62, 1, 7]: 0.25, reference 0.75" in worst
    assert "--seed 7" in done.out


def test_what_passed_says_what_came_nearest_to_its_bound(attnc, reports):
    reports[0].append((GOOD,))
    done = attnc("verify", "flash")
    assert done.status == 0
    assert "passed flash: 1 comparisons\n" in done.out
    assert "nearest to its bound: online form, bf16" in done.out


def test_a_report_that_compared_nothing_is_no_pass(attnc, reports):
    reports[0].append(())
    assert attnc("verify", "flash").status == 1


def test_every_variant_of_a_file_is_verified_even_after_a_failure(attnc, declare, reports):
    one = '[{}]\nfeature_map = "softmax"\nscale = 1.0\n'
    file = declare(one.format("left") + one.format("right"))
    reports[0].extend([(BAD,), (GOOD,)])
    done = attnc("verify", file, "--json")
    assert done.status == 1
    assert [(item["variant"], item["passed"]) for item in json.loads(done.out)] == [
        ("left", False),
        ("right", True),
    ]


def test_options_reach_the_verification(attnc, reports):
    reports[0].append((GOOD,))
    attnc("verify", "flash", "--dtype", "fp16", "--dtype", "bf16", "--dtype", "fp16", "--seed", 9)
    (options,) = reports[1]
    assert options["dtypes"] == ("fp16", "bf16")
    assert (options["seed"], options["device"]) == (9, "cpu")


def test_cuda_without_a_gpu_is_a_wrong_command_line(attnc, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = attnc("verify", "flash", "--device", "cuda")
    assert done.status == 64
    assert done.err.startswith("error[A500]: there is no CUDA device here\n")
