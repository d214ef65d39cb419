"""Gluon's fused backward on a CPU: dq summed by atomics, against the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnc.autotune.gluon_interpreter.install import gluon_interpreted
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.tuning.candidates import rounds, trial_of, ways
from attnc.ops.verification.verify import Shape, verify
from tests.conftest import ROOT

VARIANTS = loads((ROOT / "tests" / "gpu" / "gluon_variants.toml").read_text(encoding="utf-8"))
# data lists the tiles of the other masks, and they have no fused way
NAMES = [
    name for name, variant in VARIANTS.items()
    if not (variant.mask_form.documents or variant.mask_form.blocks)
]  # fmt: skip


def fused_plans(name: str, dim: int, dtype: str = "bf16") -> list[Plan]:
    asked = Request(
        VARIANTS[name], DEVICES["h100"], (dim, dim), dtype,
        backend="gluon", phase="backward", deterministic=False,
    )  # fmt: skip
    return [plan for plan in plans(asked) if not plan.deterministic]


def hold(name: str, *shapes: Shape, dtype: str = "bf16") -> None:
    report = verify(
        VARIANTS[name], backend="gluon", deterministic=False, dtypes=[dtype], shapes=shapes,
        seed=len(name),
    )  # fmt: skip
    assert report.passed, report.failures[0]
    assert not report.skipped
    rows = [row.what for row in report.rows if row.what.startswith("d ")]
    assert rows == [f"d {label}, online form, in any order" for label in "qkv"] * len(shapes)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
def test_a_feature_gives_the_gradients_of_its_formula(name):
    hold(name, Shape(1, 300, 300, 2, 1, 64, 64))


@pytest.mark.parametrize("name", ["capped", "banded"])
def test_fp16_is_right_too(name):
    hold(name, Shape(1, 200, 200, 2, 2, 64, 64), dtype="fp16")


@pytest.mark.parametrize("dim", [80, 96, 128])
def test_wide_and_odd_heads_are_right(dim):
    hold("windowed", Shape(1, 150, 150, 2, 1, dim, dim, strided=True))


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("lengths", [(1, 300), (100, 333), (333, 100)])
@pytest.mark.parametrize("name", ["plain", "banded"])
def test_queries_stand_at_the_last_keys(name, lengths):
    hold(name, Shape(1, *lengths, 2, 1, 64, 64))


def launched(plan: Plan, path, *tensors: torch.Tensor) -> list[torch.Tensor]:
    path.write_text(render(plan), encoding="utf-8")
    names = {"__name__": path.stem, "__file__": str(path)}
    with gluon_interpreted():
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), names)
    return list(names["backward"](*tensors))


@pytest.mark.parametrize("dim", [64, 128])
def test_keys_past_the_last_one_add_nothing_to_dq(dim, tmp_path):
    # a row whose scores are all -30 has exp(30) for a key of zeros, which fp16 does not hold
    q, do = torch.ones(1, 130, 1, dim).half(), torch.ones(1, 130, 1, dim).half()
    k = torch.full((1, 130, 1, dim), -30.0 / dim**0.5).half()
    v = torch.randn(1, 130, 1, dim, generator=torch.Generator().manual_seed(1)).half()
    scores = q[0, :, 0].double() @ k[0, :, 0].double().T / dim**0.5
    out = (torch.softmax(scores, -1) @ v[0, :, 0].double())[None, :, None].half()
    lse = torch.logsumexp(scores, -1).float()[None, None]
    (plan,) = fused_plans("plain", dim, "fp16")[:1]
    dq, *_ = launched(plan, tmp_path / "m.py", q, k, v, out, lse, do, torch.zeros_like(lse))
    # all keys are alike: what they give a row adds up to nothing
    assert float(dq.abs().max()) < 0.05


def test_every_tile_gives_the_same_gradients(tmp_path):
    generator = torch.Generator().manual_seed(2)
    q, k, v, do = (torch.randn(1, 300, 2, 64, generator=generator).bfloat16() for _ in range(4))
    found = attend(VARIANTS["causal"], q, k, v, {}, return_lse=True)
    kept = (found.out.bfloat16(), found.lse.float(), do, torch.zeros(1, 2, 300))
    tiles = fused_plans("causal", 64)
    assert len(tiles) == 2
    results = [
        launched(plan, tmp_path / f"m{n}.py", q, k, v, *kept) for n, plan in enumerate(tiles)
    ]
    for one, other in zip(*results, strict=True):
        assert float((one - other).abs().max()) <= 0.02 * float(one.abs().max())


def test_a_call_under_pytorchs_deterministic_algorithms_takes_two_passes():
    op = compile_op(VARIANTS["causal"], backend="gluon", deterministic=False)
    op.built_plans.first = lambda plan: not plan.deterministic
    q = torch.randn(1, 20, 1, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    taken = []
    for same_bits in (False, True, False):
        torch.use_deterministic_algorithms(same_bits)
        try:
            find = op.built_plans.find(q, q, q, [], None, "fp32", stateful=False, wanted=())
        finally:
            torch.use_deterministic_algorithms(False)
        taken.append([step.kernel.name for step in find.plan.passes])
    fused = ["clear", "dqkv", "cast"]
    assert taken == [fused, ["dq", "dkv"], fused]


def test_an_op_that_may_sum_in_any_order_runs_two_passes_until_tuning_says_otherwise():
    op = compile_op(VARIANTS["causal"], backend="gluon", deterministic=False)
    plan = op.plan(dim=(64, 64), backward=True)
    assert plan.deterministic and plan.any_order
    same = compile_op(VARIANTS["causal"], backend="gluon").plan(dim=(64, 64), backward=True)
    assert render(plan) == render(same)
    assert replace(plan, any_order=False, order_reason="", rejected=()) == replace(
        same, rejected=()
    )


def test_tuning_measures_the_fused_way_as_one_of_its_ways_and_calls_it_by_its_pass_over_pairs():
    request = Request(
        VARIANTS["causal"], DEVICES["h100"], (64, 64),
        backend="gluon", phase="backward", deterministic=False,
    )  # fmt: skip
    two, fused = ways(plans(request), exhaustive=False)
    assert [len(two), len(fused)] == [3, 2]
    places = [[place for place, _ in found] for found in rounds(fused, exhaustive=False)]
    assert places == [[1, 1]], "clear and cast have one candidate each"
    trial = trial_of(fused[0], None, request, None)
    assert trial.label == str(fused[0].passes[1]) and trial.label.startswith("dqkv: ")
