"""What a plan keeps to: the budget, the form, the chunk."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.device import DEVICES, device_named
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.dsl.variant import Variant
from attnc.errors import PlanError
from attnc.ops.shipped import shipped


def request(variant: Variant | str, **facts) -> Request:
    variant = shipped()[variant] if isinstance(variant, str) else variant
    facts = {"device": DEVICES["h100"], "dims": (64, 64), **facts}
    return Request(variant=variant, **facts)


def state_variant(**facts) -> Variant:
    return Variant(
        "drawn",
        **{"feature_map": "identity", "scale": 1.0, "normalize": "none", "mask": "causal", **facts},
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(shipped())),
    budget=st.integers(2_000, 300_000),
    dims=st.sampled_from([(16, 64), (64, 64), (80, 48), (128, 128)]),
    dtype=st.sampled_from(["bf16", "fp32"]),
    device=st.sampled_from(sorted(DEVICES)),
)
def test_no_plan_exceeds_the_budget(name, budget, dims, dtype, device):
    if name == "based":
        dims = (16, dims[1])  # 8,385 monomials of 128 channels take seconds to plan
    device = DEVICES[device].with_sram(budget)
    try:
        found = plans(request(name, device=device, dims=dims, dtype=dtype))
    except PlanError as error:
        assert f"fits {budget:,} B of SRAM" in error.message
        return
    for plan in found:
        assert plan.sram_bytes <= budget
        for step in plan.passes:
            assert step.cost.registers <= device.registers


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(["flash", "linear", "retnet"]), budget=st.integers(20_000, 200_000))
def test_a_larger_budget_rejects_no_more(name, budget):
    def fitting(sram: int) -> set[str]:
        try:
            found = plans(request(name, device=DEVICES["a100"].with_sram(sram)))
        except PlanError:
            return set()
        return {"; ".join(map(str, plan.passes)) for plan in found if plan.form != "parallel"}

    assert fitting(budget) <= fitting(budget + 20_000)


def test_every_rejected_candidate_says_by_how_much():
    best = plans(request("flash", dims=(128, 128), device=DEVICES["l4"]))[0]
    assert best.rejected
    for item in best.rejected:
        assert item.candidate
        assert re.search(
            r"needs [\d,]+ B of SRAM, the budget is 101,376 B"
            r"|needs about \d+ registers a thread, at most \d+ are there"
            r"|ranked behind: \d+ us with its tiles' cost, the first \d+ us",
            item.reason,
        ), item.reason


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("flash", r"\w+ \[\d+, \d+\] bf16, [\d,]+ B"),
        ("retnet", r"\w+ \[\d+, \d+\] (bf16|fp32), [\d,]+ B"),
    ],
)
def test_a_budget_that_nothing_fits_is_an_error_that_names_the_largest_buffer(name, largest):
    with pytest.raises(PlanError) as caught:
        plans(request(name, device=DEVICES["h100"].with_sram(1000), form=None))
    assert re.fullmatch(
        rf"error\[A200\]: no tile of '{name}' at K=64, V=64, bf16 fits 1,000 B of SRAM: "
        r"the smallest needs [\d,]+ B\n"
        rf"  note: the largest buffer of that candidate is {largest}\n"
        r"  note: \d+ candidates were rejected\n"
        r"  hint: raise the budget, use a smaller head dim, or a 16-bit dtype",
        caught.value.render(),
    ), caught.value.render()


def test_a_state_too_large_for_any_tile_is_planned_in_parallel_and_the_plan_says_so():
    """Order 2 at 80 channels is 3,321 features."""
    best = plans(request("based", dims=(80, 64)))[0]
    assert best.form == "parallel"
    assert re.fullmatch(
        r"the state is too large for any tile: 3,321 features by 64 columns of v in fp32 "
        r"take [\d,]+ B, a state may take 196,608 of the 262,144 B of registers of a program",
        best.form_reason,
    ), best.form_reason
    assert plans(request("based", dims=(16, 64)))[0].form == "chunked"


def test_a_state_asked_for_that_no_tile_holds_is_an_error_and_not_another_form():
    for facts in ({"stateful": True}, {"form": "chunked"}):
        with pytest.raises(PlanError) as caught:
            plans(request("based", dims=(80, 64), **facts))
        assert re.fullmatch(
            r"error\[A200\]: no tile of 'based' at K=80, V=64, bf16 holds its state\n"
            r"  note: 3,321 features by 64 columns of v in fp32 take [\d,]+ B, "
            r"a state may take 196,608 of the 262,144 B of registers of a program\n"
            r"  hint: the parallel form keeps no state; or use a smaller K or a lower order",
            caught.value.render(),
        ), caught.value.render()


@pytest.mark.parametrize("facts", [{}, {"phase": "backward"}])
def test_a_state_that_registers_do_not_hold_is_not_said_to_want_memory(facts):
    with pytest.raises(PlanError) as caught:
        plans(request("rebased", dims=(32, 16), form="chunked", **facts))
    of = "the backward of " if facts else ""
    assert re.match(
        rf"error\[A200\]: no tile of {of}'rebased' at K=32, V=16, bf16 fits the registers of a "
        r"program\n  note: .*needs about \d+ registers a thread, at most \d+ are there\n",
        caught.value.render(),
    ), caught.value.render()


@pytest.mark.parametrize(
    ("name", "form", "reason", "legal"),
    [
        (
            "flash", "chunked",
            "exp(score) is no finite polynomial in s, so no state of fixed size holds it", "online",
        ),
        ("flash", "parallel", "the online form is the softmax family's own", "online"),
        ("linear", "online", "the weight is not exp(score)", "parallel, chunked, recurrent"),
        (
            "linear", "fft",
            "that is a form of convolutions, whose weight is a function of i - j alone",
            "parallel, chunked, recurrent",
        ),
    ],
)  # fmt: skip
def test_a_form_that_is_not_legal_is_refused_with_the_reason(name, form, reason, legal):
    with pytest.raises(PlanError) as caught:
        plans(request(name, form=form))
    assert caught.value.render() == (
        f"error[A200]: {name!r} has no {form} form\n"
        f"  note: {reason}\n"
        f"  hint: its legal forms are: {legal}"
    )


def test_a_device_that_nobody_knows_lists_the_known_ones():
    with pytest.raises(PlanError) as caught:
        device_named("h1000")
    assert caught.value.render() == (
        "error[A200]: unknown device 'h1000'\n"
        "  note: known devices: h100, h200, a100, l4, rtx4090, b200, mi300x\n"
        "  hint: name one of them, and give its budget with --sram BYTES if it differs\n"
        "  hint: an op that is given none plans for the device of each call's tensors"
    )


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
def test_a_chunk_that_is_given_is_the_chunk_of_every_plan(chunk):
    for plan in plans(request(state_variant(chunk=chunk))):
        assert {step.tile["BC"] for step in plan.passes} == {chunk}


def test_a_mask_that_is_not_causal_takes_the_parallel_form():
    plan = plans(request(state_variant(mask="window(3)")))[0]
    assert plan.form == "parallel"
    assert plan.form_reason.startswith("the mask is not exactly causal")


def test_the_digest_names_the_decisions_and_not_the_device():
    plan, same = (plans(request("flash", device=DEVICES[name]))[0] for name in ("h100", "h200"))
    other = plans(request("flash", dtype="fp32"))[0]
    assert str(plan.passes[0]) == str(same.passes[0])
    assert plan.digest == same.digest
    assert plan.digest != other.digest
