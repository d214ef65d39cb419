"""What answers at once, and what that costs to import."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "triton", "sympy", "networkx", "jinja2", "numpy"}
HOSTILE = """
[deep]
feature_map = "softmax"
scale = 1.0
score = "{score}"
mask = "{mask}"
"""


def seconds(*arguments: str) -> float:
    """Processor time of the command, the least of several tries: other tests share the machine."""
    tries = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "attnc", *arguments], cwd=ROOT, capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        tries.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(tries)


def heavy_after(*arguments: str) -> set[str]:
    code = (
        "import sys; from attnc.cli.app import run; "
        f"run({list(arguments)!r}); sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], ["plan", "-h"]])
def test_help_and_list_answer_in_half_a_second(arguments):
    assert seconds(*arguments) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list"], ["list", "--json"], ["check", "based"]]
)
def test_help_list_and_check_import_nothing_heavy(arguments):
    assert heavy_after(*arguments) == set()


def test_emit_and_plan_without_the_compiler_import_neither_torch_nor_triton():
    assert heavy_after("emit", "based").isdisjoint({"torch", "triton"})
    assert heavy_after("plan", "based", "--no-compiled").isdisjoint({"torch", "triton"})


@pytest.mark.parametrize(
    ("score", "mask"),
    [
        ("(" * 5000 + "s" + ")" * 5000, "causal"),
        ("+".join(["s"] * 50_000), "causal"),
        ("s**16**16**16", "causal"),
        ("s", " & ".join(f"(i - j < {n} | j < {n})" for n in range(40))),
        ("s", "~(" * 500 + "causal" + ")" * 500),
    ],
    ids=["parentheses", "long", "powers", "clauses", "complements"],
)
def test_check_answers_hostile_input_within_two_seconds(score, mask, attnc, declare):
    file = declare(HOSTILE.format(score=score, mask=mask))
    start = time.perf_counter()
    done = attnc("check", file)
    assert time.perf_counter() - start < 2.0
    assert done.status in {0, 2}
    assert "Traceback" not in done.err
