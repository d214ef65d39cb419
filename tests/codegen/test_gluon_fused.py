"""The fused backward: who is offered it, where it ranks, and what those without are told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.gluon.pair_schedule import pair_schedule
from attnc.codegen.plan import Request
from attnc.codegen.planning.choice import choice_of, chosen, kernel_key
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.explain import explain_plan
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads
from attnc.ops.shipped import shipped
from tests.conftest import ROOT

TOML = (ROOT / "tests" / "gpu" / "gluon_variants.toml").read_text(encoding="utf-8")
VARIANTS = loads(TOML)
WANTING = loads(TOML.replace("] }", "], grad = true }"))


def request(name: str = "causal", dim: int = 128, **facts) -> Request:
    variant = {**shipped(), **VARIANTS}[name]
    asked = {"backend": "gluon", "phase": "backward", "deterministic": False, **facts}
    return Request(variant, DEVICES["h100"], (dim, dim), **asked)


@pytest.mark.parametrize("dim", [64, 128])
def test_fused_plans_rank_behind_all_of_two_passes_and_say_why(dim):
    ranked = plans(request(dim=dim))
    order = [plan.deterministic for plan in ranked]
    assert order == sorted(order, reverse=True) and set(order) == {True, False}
    assert all(plan.any_order for plan in ranked)
    names = {tuple(step.kernel.name for step in plan.passes) for plan in ranked}
    assert names == {("dq", "dkv"), ("clear", "dqkv", "cast")}
    told = [item for item in ranked[0].rejected if item.candidate.startswith("clear")]
    assert told and all("no card has timed such kernels" in item.reason for item in told)
    line = "order of sums: sums of dq in any order are allowed, and there is a fused way, ranked"
    assert line in explain_plan(ranked[0])


def test_whoever_says_nothing_gets_the_plans_there_were():
    ranked = plans(request(deterministic=True))
    assert all(plan.deterministic and not plan.any_order for plan in ranked)
    assert not any(plan.order_reason for plan in ranked)
    assert "order of sums" not in explain_plan(ranked[0])
    free = plans(request())
    assert [render(plan) for plan in free if plan.deterministic] == [*map(render, ranked)]


TOLD = {
    "a forward has no dq": request(phase="forward"),
    "a decode has no dq": request(phase="decode", backend=None),
    "the triton backend has none, since one was slower": request(backend="triton"),
    "the state family has its gradients of passes without": request("lightning", backend=None),
    "data lists the tiles of this mask": request("tabled"),
    "the gradient of slope[h] needs what each row's": replace(
        request("sloped"), variant=WANTING["sloped"]
    ),
    "the gradient of z[h] needs what each row's": replace(request("sunk"), variant=WANTING["sunk"]),
    "it needs 198,176 B of SRAM, the budget is 198,175 B": replace(
        request(), device=DEVICES["h100"].with_sram(198_175)
    ),
}


@pytest.mark.parametrize("why", TOLD)
def test_a_request_without_a_fused_way_is_told_so_and_gets_two_passes(why):
    ranked = plans(TOLD[why])
    assert all(plan.deterministic and not plan.any_order for plan in ranked)
    for plan in (*ranked, *ranked[0].otherwise):
        assert plan.order_reason.startswith("sums of dq in any order are allowed, and there is no")
        assert why in plan.order_reason
    assert plans(replace(TOLD[why], deterministic=True))[0].digest == ranked[0].digest


def test_a_declared_tensor_whose_gradient_nobody_wants_is_no_reason_against():
    asked = replace(request("sloped"), variant=WANTING["sloped"], wanted=())
    assert plans(asked)[0].any_order


def test_five_products_are_counted_where_two_passes_have_seven():
    ranked = plans(request("plain", 64))
    two, fused = (next(p for p in ranked if p.deterministic is want) for want in (True, False))
    flops = [sum(step.cost.flops for step in plan.passes if step.kernel.loops)
             for plan in (two, fused)]  # fmt: skip
    work = ranked[0].workload
    product = 2 * work.batch * work.hq * work.tq * work.tk * 64
    assert flops == [7 * product, 5 * product]


def test_a_store_of_either_kind_of_request_has_no_answers_of_the_other():
    free, bound = plans(request()), plans(request(deterministic=True))
    assert kernel_key(free[0]) != kernel_key(bound[0])
    last = choice_of(free[-1])
    assert chosen(bound, last) is None
    found = chosen(free, last)
    assert found is not None and not found.deterministic


@pytest.mark.parametrize("name", ["plain", "causal", "banded", "prompted", "bounded"])
def test_keys_past_the_last_one_are_masked_in_every_loop_of_a_fused_pass(name):
    text = render(next(p for p in plans(request(name)) if not p.deterministic))
    body = text.partition("_dqkv_consumer(")[2].partition("for i_t in range(")[0]
    assert re.search(r"if \(i_s \+ 1\) \* BW > TK:.*\n +full_hi = (full_lo|0)\n", body)


def test_deleting_the_fused_product_from_the_graph_deletes_it_from_the_schedule():
    (fused,) = [p for p in plans(request()) if not p.deterministic][:1]
    graph = fused.passes[1].kernel.graph
    assert pair_schedule(graph, masked=False).added is not None
    assert pair_schedule(graph.without("dq of keys"), masked=False).added is None
    two = next(p for p in plans(request()) if p.deterministic).passes[1].kernel.graph
    assert pair_schedule(two, masked=False).added is None


@pytest.mark.parametrize("dim", [64, 128])
def test_a_fused_module_is_valid_and_its_lines_fit(dim):
    text = render([p for p in plans(request(dim=dim)) if not p.deterministic][-1])
    compile(text, "m", "exec")
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("tma_add(dq_sum, there, s_dq.index(GROUP))") == 4


def test_the_golden_fused_backward_is_what_is_emitted(golden):
    (plan,) = [p for p in plans(request("causal", 64)) if not p.deterministic][:1]
    golden("causal_fused_bwd.py", render(plan))
