"""`attnc plan` and `attnc explain`."""

from __future__ import annotations

import json

import pytest

from attnc.ops.shipped import shipped

FILE = """
[left]
feature_map = "softmax"
scale = 1.0

[right]
feature_map = "identity"
scale = 1.0
mask = "causal"
normalize = "none"
"""


def test_a_plan_is_held_against_the_compiler(attnc):
    done = attnc("plan", "flash", "--device", "h100", "--dtype", "bf16", "--backend", "triton")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "flash on h100: online form, triton backend, bf16, K=64 V=64"
    assert lines[1] == "why    exp(score) folds as (maximum, sum, accumulator)"
    assert lines[2].startswith("for    B=4 T=4096 H=16, 49.2% of the pairs visible")
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names[:2] == ["sram", "compiler"]
    assert {"regs", "work", "loop"} <= set(names)
    assert "of 232,448 B" in done.out
    assert "other candidates do not fit" in done.out or "other candidates fit" in done.out


def test_the_json_of_a_plan_holds_every_decision(attnc):
    done = attnc("plan", "flash", "--json", "--backend", "triton")
    assert done.status == 0
    plan = json.loads(done.out)
    assert plan["variant"] == "flash"
    assert plan["variant_digest"] == shipped()["flash"].digest
    assert (plan["device"], plan["target"]) == ("h100", "cuda:90")
    assert (plan["family"], plan["form"], plan["dtype"]) == ("softmax", "online", "bf16")
    assert plan["dim"] == {"qk": 64, "v": 64}
    assert plan["budget_bytes"] == 232448
    assert 0 < plan["sram_bytes"] <= plan["budget_bytes"]
    (step,) = plan["passes"]
    assert step["kernel"] == "online"
    assert set(step["tiles"]) == {"BT", "BS", "BK", "BV"}
    held = sum(buffer["nbytes"] * buffer["copies"] for buffer in step["buffers"])
    assert held == step["sram_bytes"] == plan["sram_bytes"]
    assert [loop["masked"] for loop in step["loops"]] == [False, True]
    assert {"registers", "hbm_bytes", "flops", "time_us", "num_warps", "num_stages"} <= set(step)
    compiled = step["compiled"]
    assert compiled["gap_bytes"] == step["sram_bytes"] - compiled["shared_bytes"]
    assert compiled["gap"] == compiled["gap_bytes"] / compiled["shared_bytes"]
    assert compiled["registers"] > 0
    assert all(item["candidate"] and item["reason"] for item in plan["rejected"])
    assert len(plan["rejected"]) > 10


def test_without_the_compiler_nothing_is_said_of_it(attnc):
    plan = json.loads(attnc("plan", "based", "--no-compiled", "--json").out)
    assert [step["compiled"] for step in plan["passes"]] == [None] * 3
    assert plan["features"] == 153
    text = attnc("plan", "based", "--no-compiled").out
    assert "compiler" not in text
    assert "state  153 features in tiles of 64 + 64 + 32, V = 64, fp32" in text


def test_a_whole_file_is_an_array(attnc, declare):
    file = declare(FILE)
    plans = json.loads(attnc("plan", file, "--no-compiled", "--json").out)
    assert [plan["variant"] for plan in plans] == ["left", "right"]
    one = json.loads(attnc("plan", f"{file}:right", "--no-compiled", "--json").out)
    assert one == plans[1]


def test_a_budget_makes_smaller_tiles(attnc):
    small = json.loads(attnc("plan", "flash", "--sram", "40000", "--no-compiled", "--json").out)
    assert small["budget_bytes"] == 40000
    assert small["sram_bytes"] <= 40000
    assert any("budget is 40,000 B" in item["reason"] for item in small["rejected"])


def test_the_candidates_that_fit_and_those_that_do_not_are_told_apart(attnc):
    out = attnc("plan", "flash", "--sram", "100000", "--no-compiled").out
    fit, unfit = out.index("other candidates fit and rank behind"), out.index("do not fit")
    assert fit < unfit
    assert "ranked behind: " in out[fit:unfit]
    assert "the budget is 100,000 B" in out[unfit:]
    assert "the budget is 100,000 B" not in out[fit:unfit]


def test_a_state_too_large_for_any_tile_is_planned_parallel_and_said_so(attnc):
    plan = json.loads(attnc("plan", "based", "--dim", "80", "--no-compiled", "--json").out)
    assert plan["form"] == "parallel"
    assert "too large" in plan["form_reason"]


def test_explain_prints_every_stage(attnc):
    done = attnc("explain", "lightning")
    assert done.status == 0
    headings = [line for line in done.out.splitlines() if line.startswith("== ")]
    assert headings == ["== variant", "== algebra", "== graph", "== plan"]


def test_explain_says_the_same_as_the_op(attnc):
    import attnc as package

    assert (
        attnc("explain", "based").out.rstrip()
        == package.compile(shipped()["based"]).explain().rstrip()
    )


def test_a_step_beside_a_state_reads_the_same_however_many_tokens_came_before(attnc):
    told = []
    for tokens in (2_048, 65_536):
        done = attnc(
            "plan", "window_taylor", "--decode", "--cache", "folded", "--shape", f"64,{tokens}",
            "--heads", "16", "--no-compiled",
        )  # fmt: skip
        assert done.status == 0
        told.append([line for line in done.out.splitlines() if line.startswith("  work")])
        assert "why    a state holds term 2, one row goes over the ring of the others" in done.out
    # 1,024 heads: 160 features by 64 channels and a sum in fp32, twice, and 64 keys and values
    nbytes = 1024 * (2 * 160 * 65 * 4 + 64 * 80 * 2)
    assert told[0] == told[1] and f"{nbytes / 1e6:.1f} MB" in told[0][0]


@pytest.mark.parametrize(
    ("name", "why"),
    [("flash", "exp(score) is no finite polynomial in s"),
     ("flash_sigmoid", "the weight is no polynomial in s")],
)  # fmt: skip
def test_a_cache_kind_that_a_variant_has_not_is_refused_with_the_reason(attnc, name, why):
    done = attnc("plan", name, "--decode", "--cache", "folded")
    assert done.status == 64
    assert done.err == (
        f"error[A500]: '{name}' has no state beside its cache\n"
        f"  note: {why}, so no state of fixed size holds it\n"
    )
