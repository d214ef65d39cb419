"""Tuning: what is measured and what wins, who may go down, and what the store remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnc.autotune.compiler import CompilePool
from attnc.autotune.measure import Bench, Trial, winner
from attnc.autotune.module_cache import store_module
from attnc.autotune.tuning_journal import TuningJournal
from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.codegen.planning.choice import Bucket
from attnc.codegen.planning.planner import plans
from attnc.ops.op import compile as compile_op
from attnc.ops.operators import op_named
from attnc.ops.shipped import shipped
from attnc.ops.tuning import tuned as tuned_module
from attnc.ops.tuning.candidates import (
    CandidateKernels,
    fitting,
    rounds,
    trial_of,
    with_pass,
)
from attnc.ops.tuning.tune import tune
from attnc.ops.verification.draw import Shape

ANSWER = Tuned(
    kernel="k" * 16, variant="flash", phase="forward", dtype="bf16", dims=(64, 64),
    bucket=Bucket(4096, 64), choice=("online: BT=128, 8 warps, 3 stages",), ms=0.5, noise=0.01,
    measured=10, candidates=20, triton="3.6.0", attnc="0.1.0", when="2026-11-24T00:00:00+00:00",
)  # fmt: skip
DEVICE = "NVIDIA X1, which ships no store"


def ranked(name: str = "flash", *, backward: bool = False):
    op = compile_op(shipped()[name], device="h100")
    request = op.request((64, 64), "bf16", None, False)
    return plans(replace(request, phase="backward" if backward else "forward"))


@pytest.fixture
def bench(tmp_path):
    facts = {"arguments": [torch.arange(4.0)], "expected": [2 * torch.arange(4.0)], "bounds": [0.1]}
    torch.save(facts, tmp_path / "inputs.pt")
    with Bench("cpu", timeout_s=8.0) as made:
        made.load(tmp_path / "inputs.pt")
        yield made


def trial(body: str, footprint: int = 0) -> Trial:
    source = f"import os, time, torch\n\ndef forward(x):\n    {body}\n"
    return Trial(store_module(source, "trial"), body, body, 1.0, footprint)


def test_what_crashes_hangs_or_errs_loses_itself_alone_and_its_time_never_counts(bench):
    good = trial("return x * 2")
    wrong = trial("return x * 3")
    nothing = trial('return torch.full_like(x, float("nan"))')
    crash = trial("os.abort()")
    hang = trial("time.sleep(600)")
    raises = trial('raise RuntimeError("no")')
    everyone = [crash, wrong, hang, raises, nothing, good]
    bench.time(everyone, "forward", until=time.monotonic() + 60, rounds=2, repeats=2)
    assert len(good.samples) == 4
    assert winner(everyone) is good
    assert wrong.problem == "output 0 is 3 from the reference, 0.1 is allowed"
    assert nothing.problem.startswith("output 0 is nan from the reference")
    assert crash.problem.startswith("took its worker down, which was killed by SIGABRT")
    assert hang.problem == "took longer than 8 s"
    assert raises.problem == "RuntimeError: no"
    assert not any(t.samples for t in everyone if t is not good)


def test_the_fastest_wins_and_a_tie_goes_to_the_smaller_footprint():
    slow, large, small = (
        trial("return x * 2", 1),
        trial("return x + x", 9),
        trial("return 2 * x", 5),
    )
    slow.samples = [2.0, 2.0, 2.0, 2.0]
    large.samples = [1.0, 0.9, 1.1, 1.0]
    small.samples = [1.01, 1.02, 1.0, 1.01]
    assert winner([slow, large, small]) is small
    small.samples = [1.5] * 4
    assert winner([slow, large, small]) is large


def test_measuring_stops_when_its_time_is_up_with_as_many_samples_each(bench):
    trials = [trial("time.sleep(0.05); return x * 2"), trial("time.sleep(0.05); return x + x")]
    bench.time(trials, "forward", until=time.monotonic() - 1, rounds=50, repeats=2)
    assert [len(t.samples) for t in trials] == [2, 2]


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_tuned_op_runs_the_plan_that_won_and_computes_the_same(phase, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    tuned_module.forget()
    op = compile_op(shipped()["linear"])
    shape = Shape(1, 40, 40, 2, 1, 16, 16)
    (result,) = tune(op, [shape], dtypes=["fp32"], phases=[phase], device="cpu", budget_s=0.5)
    assert result.answer is not None
    assert result.answer.measured <= 10 * len(result.answer.choice)
    path = TuningStore().path("cpu")
    stored = json.loads(path.read_text())["tuned"]
    assert [tuple(row["choice"]) for row in stored.values()] == [result.answer.choice]

    q, k, v = (torch.rand(1, 37, h, 16, requires_grad=True) for h in (2, 1, 1))
    op(q, k, v).sum().backward()
    kinds = op_named(op.key).built_plans.by_kind
    used = {choice for (key, choice), _ in kinds.items() if key.phase == phase}
    assert result.answer.choice in used
    reference = op.reference(q, k, v)
    torch.testing.assert_close(op(q, k, v).double(), reference, rtol=1e-4, atol=1e-5)
    tuned_module.forget()


def test_a_run_that_was_killed_goes_on_where_it_stopped(bench, tmp_path):
    path = tmp_path / "run.journal"
    slow, wrong = trial("return 2 * x"), trial("return x * 3")
    bench.time([slow, wrong], "forward", until=time.monotonic() + 60, rounds=1, repeats=3,
               journal=TuningJournal(path))  # fmt: skip
    with path.open("a") as file:
        file.write('{"candidate": "' + slow.path.name)  # what was being written when it was killed
    again = [trial("return 2 * x"), trial("return x * 3"), trial("return x + x + x - x")]
    journal = TuningJournal(path)
    for each in again:
        journal.recall(each)
    assert again[0].samples == slow.samples and len(slow.samples) == 3
    assert again[1].problem == wrong.problem != ""
    bench.time(again, "forward", until=time.monotonic() + 60, rounds=2, repeats=3, journal=journal)
    assert [len(each.samples) for each in again] == [6, 0, 6]
    assert again[0].samples[:3] == slow.samples
    journal.close()
    assert not path.exists()


def test_kill_9_in_the_middle_of_a_run_loses_no_measurement(tmp_path):
    script = """
from attnc.ops.verification.draw import Shape
from attnc.ops.op import compile
from attnc.ops.shipped import shipped
from attnc.ops.tuning.tune import tune
from attnc.ops.tuning.candidates import (
    CandidateKernels,
    fitting,
    rounds,
    trial_of,
    with_pass,
)
tune(compile(shipped()["linear"]), [Shape(1, 40, 40, 2, 1, 16, 16)], dtypes=["fp32"],
     phases=["forward"], device="cpu", budget_s=60)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "ATTNC_CACHE_DIR": str(tmp_path)}
    run = subprocess.Popen([sys.executable, "-c", script], cwd=root, env=environment)
    deadline = time.monotonic() + 120
    while not (journals := list(tmp_path.rglob("*.journal"))):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.wait()
    before = journals[0].read_text().splitlines()
    assert not (tmp_path / "tuning" / "cpu.json").exists()
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True)
    assert not list(tmp_path.rglob("*.journal"))
    (answers,) = TuningStore(tmp_path / "tuning").read("cpu").values()
    (seen,) = TuningStore(tmp_path / "tuning").runs()
    measured = [t for t in seen["trials"] if t["ms"] is not None]
    assert len(measured) == answers.measured
    assert len(before) >= 1


RANKS = """
import os, sys
import torch.distributed as dist
from pathlib import Path
from attnc.autotune.tuning_store import TuningStore
from attnc.ops.verification.draw import Shape
from attnc.ops.op import compile
from attnc.ops.shipped import shipped
from attnc.ops.tuning.tune import tune
from attnc.ops.tuning.candidates import (
    CandidateKernels,
    fitting,
    rounds,
    trial_of,
    with_pass,
)
from attnc.ops.tuning.tuned import share_tuned
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
os.environ["ATTNC_CACHE_DIR"] = f"{sys.argv[3]}/{rank}"
(result,) = tune(compile(shipped()["linear"]), [Shape(1, 40, 40, 2, 1, 16, 16)], dtypes=["fp32"],
                 phases=["forward"], device="cpu", budget_s=0.1)
print(result.answer.choice, len(result.trials) > 0, len(TuningStore().read("cpu")),
      share_tuned("cpu"))
"""


def test_all_ranks_of_a_distributed_job_get_one_answer_and_one_measures(tmp_path):
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(n), str(tmp_path / "meet"), str(tmp_path)],
            cwd=root, stdout=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    first, second = (rank.communicate(timeout=200)[0].splitlines()[-1] for rank in ranks)
    assert first.endswith("True 1 1") and second.endswith("False 1 1")
    assert first.split(" True ")[0] == second.split(" False ")[0]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    plans_of = ranked("lightning", backward=True)
    groups = rounds(plans_of, exhaustive=False)
    candidates = [group[0] for group in groups][:1]
    with CompilePool(2) as pool:
        folder = tmp_path_factory.mktemp("binaries")
        yield plans_of, candidates, CandidateKernels(pool, folder, candidates)


def test_a_candidate_comes_with_the_binaries_that_a_worker_launches(kernels):
    plans_of, ((place, plan),), compiled = kernels
    op = compile_op(shipped()["lightning"], device="h100")
    whole = with_pass(plans_of[0], place, plan)
    made = trial_of(whole, place, op.request((64, 64), "bf16", None, False), compiled)
    assert made.problem == ""
    assert [entry["kernel"] for entry in made.kernels] == [
        f"lightning_{step.kernel.name}" for step in whole.passes
    ]
    assert all(Path(entry["file"]).read_bytes()[:4] == b"\x7fELF" for entry in made.kernels)
    assert made.footprint == max(entry["shared_bytes"] for entry in made.kernels)
    assert "import triton" not in made.path.read_text()


def test_what_spills_much_is_left_out_where_something_does_not():
    some = [trial(f"return {n} * x") for n in range(13)]
    for n, each in enumerate(some):
        each.predicted_us, each.spills = float(n), 5000 if n == 0 else 40
    kept = fitting(some, exhaustive=False)
    assert [t.predicted_us for t in kept] == [float(n) for n in range(1, 11)]
    assert some[0].problem == "not measured: spills 5,000 B a thread"
    assert some[12].problem == "not measured: ten were predicted to be faster"
    assert len(fitting([trial("return x") for _ in range(13)], exhaustive=True)) == 13
