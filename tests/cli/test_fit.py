"""A formula proposes, the compiler decides: plans that it refuses give way to the next."""

from __future__ import annotations

import pytest

from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, CompileFailure
from attnc.cli import fit
from attnc.cli.fit import candidate, fit_plans
from attnc.cli.plan_json import plan_object
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.errors import CompileError, PlanError
from attnc.ops.shipped import shipped

H100 = DEVICES["h100"]


def ranked(name: str):
    return plans(Request(shipped()[name], H100, (16, 64)))


def compiled(job, shared_bytes: int) -> Compiled:
    return Compiled(
        kernel=job.kernel.name,
        target=job.target,
        shared_bytes=shared_bytes,
        registers=100,
        spill_stores=0,
        spill_loads=0,
        num_warps=4,
        num_stages=1,
        binary=b"",
        extension="cubin",
        name=job.kernel.name,
        seconds=0.0,
        ptx=None,
    )


@pytest.fixture
def verdicts(monkeypatch):
    """Answer each round of jobs with the next function; the last one answers all that follow."""
    rounds = []

    def judge(_pool, jobs, progress=None):
        answer = rounds.pop(0) if len(rounds) > 1 else rounds[0]
        return [answer(job) for job in jobs]

    monkeypatch.setattr(fit.CompilePool, "map", judge)
    return rounds


def fits(job):
    return compiled(job, 1000)


def too_large(job):
    return compiled(job, H100.sram_bytes + 1)


def fails(job):
    return CompileFailure(job.kernel.name, job.target, "out of luck", ("line 1",))


def test_a_plan_that_fits_is_taken_with_its_kernels(verdicts):
    verdicts[:] = [fits]
    (fitted,) = fit_plans([ranked("based")])
    assert fitted.plan == ranked("based")[0]
    assert fitted.refused == ()
    assert [spec.name for spec, _ in fitted.kernels] == [
        "based_state",
        "based_scan",
        "based_output",
    ]


def test_a_plan_that_the_compiler_finds_too_large_gives_way_to_the_next(verdicts):
    verdicts[:] = [too_large, too_large, fits]
    (fitted,) = fit_plans([ranked("flash")])
    assert fitted.plan == ranked("flash")[2]
    assert [item.reason for item in fitted.refused] == [
        "flash_online takes 232,449 B of SRAM by the compiler, the budget is 232,448 B"
    ] * 2
    found = plan_object(fitted.plan, fitted)
    assert [item["candidate"] for item in found["refused_by_compiler"]] == [
        candidate(plan) for plan in ranked("flash")[:2]
    ]
    assert candidate(fitted.plan) not in {item["candidate"] for item in found["rejected"]}


def test_one_ranking_that_goes_on_leaves_the_others_as_they_are(verdicts):
    verdicts[:] = [lambda job: too_large(job) if "flash" in job.kernel.name else fits(job), fits]
    flash, linear = fit_plans([ranked("flash"), ranked("linear")])
    assert len(flash.refused) == 1
    assert linear.refused == ()


def test_where_the_compiler_takes_no_plan_the_error_says_so(verdicts):
    verdicts[:] = [too_large]
    count = len(ranked("flash"))
    with pytest.raises(PlanError) as caught:
        fit_plans([ranked("flash")])
    assert caught.value.render() == (
        f"error[A200]: the compiler refuses all {count} plans of 'flash' for h100\n"
        "  note: the last one: flash_online takes 232,449 B of SRAM by the compiler, "
        "the budget is 232,448 B\n"
        "  hint: raise the budget, use a smaller head dim, or a 16-bit dtype"
    )


def test_one_tile_that_does_not_compile_gives_way_to_the_next(verdicts):
    verdicts[:] = [fails, fits]
    (fitted,) = fit_plans([ranked("flash")])
    assert fitted.refused[0].reason == "does not compile: out of luck"


def test_kernels_that_compile_in_no_tile_are_an_error_soon(verdicts):
    asked = []
    verdicts[:] = [lambda job: asked.append(job) or fails(job)]
    with pytest.raises(CompileError, match="flash_online does not compile for cuda:90"):
        fit_plans([ranked("flash")])
    assert len(asked) == 3


def test_a_refusal_is_said_on_the_screen(verdicts, attnc):
    verdicts[:] = [too_large, fits]
    done = attnc("plan", "flash", "--backend", "triton")
    assert done.status == 0
    assert "next   not online: BT=128 BS=64" in done.out
    assert "232,449 B of SRAM by the compiler" in done.out


def test_a_kernel_that_does_not_compile_exits_70(verdicts, attnc):
    verdicts[:] = [fails]
    done = attnc("plan", "flash")
    assert done.status == 70
    assert done.err == (
        "error[A401]: flash_online does not compile for cuda:90: out of luck\n  note: line 1\n"
    )


def test_the_target_is_the_device_s(verdicts):
    seen = set()
    verdicts[:] = [lambda job: seen.add(job.target) or fits(job)]
    fit_plans([plans(Request(shipped()["flash"], DEVICES["a100"], (64, 64)))])
    assert seen == {Target("cuda", "80")}
