"""Which backend is taken unasked: by device, head dims, dtype, mask, lengths, and who launches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnc.cli.build import Order
from attnc.codegen.algebra import analyse
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request, Workload
from attnc.codegen.planning.backend import choose_backend
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.explain import explain_plan
from attnc.dsl.sequences import over_sequences
from attnc.dsl.toml_file import loads
from attnc.ops.shipped import shipped

VARIANTS = loads(
    "\n".join(
        f'[{name}]\nfeature_map = "softmax"\nscale = "rsqrt(d)"\n{more}'
        for name, more in {
            "full": "",
            "causal": 'mask = "causal"',
            "window128": 'mask = "causal & window(127)"',
            "window1024": 'mask = "causal & window(1023)"',
            "softcap": 'mask = "causal"\nscore = "softcap(s, 50)"',
            "alibi": 'mask = "causal"\nscore = "s - a[h] * (i - j)"\nparams.a = { shape = ["h"] }',
            "biased": 'score = "s + bias[h, i, j]"\ninputs.bias = { shape = ["h", "i", "j"] }',
            "union": 'mask = "(causal & window(900)) | prefix(4)"',
            "documents": 'mask = "documents(ids)"\ninputs.ids = { shape = ["b", "t"] }',
        }.items()
    )
)


def long(tokens: int, heads: int = 32) -> Workload:
    """As many tokens as the measured calls had, in sequences of a length."""
    return Workload(max(1, 16384 // tokens), tokens, tokens, heads, heads)


def request(name: str, dim: int, work: Workload, **facts) -> Request:
    variant = VARIANTS.get(name) or shipped()[name]
    return Request(
        variant, facts.pop("device", DEVICES["h100"]), (dim, dim), workload=work, **facts
    )


def backend_of(asked: Request) -> str:
    return choose_backend(asked, analyse(asked.variant)).name


TAKEN = {
    "128 columns from T=1024 on": request("causal", 128, long(1024)),
    "128 columns, no mask": request("full", 128, long(1024)),
    "96 columns lie in tiles of 128": request("causal", 96, long(4096)),
    "fp16 as bf16": request("causal", 128, long(4096), dtype="fp16"),
    "an H200 as an H100": request("causal", 128, long(4096), device=DEVICES["h200"]),
    "64 columns, causal, where that was faster": request("causal", 64, long(4096)),
    "a backward of 64 columns": request("causal", 64, long(1024), phase="backward"),
    "a backward of 128 columns": request("softcap", 128, long(4096), phase="backward"),
    "64 columns, where a row sees as many keys": request("full", 64, long(4096)),
    "a narrow window of 128 columns": request("window128", 128, long(8192)),
    "a window that is wide enough": request("window1024", 128, long(8192)),
    "a score of the pair's numbers": request("softcap", 128, long(4096)),
    "a score of a number a head": request("alibi", 128, long(4096)),
    "few queries of many keys": request("full", 128, Workload(8, 256, 16384, 32, 8)),
}


@pytest.mark.parametrize("what", TAKEN)
def test_gluon_is_taken_where_a_card_saw_it_faster(what):
    assert backend_of(TAKEN[what]) == "gluon"
    assert backend_of(replace(TAKEN[what], backend="triton")) == "triton"


LEFT = {
    "its kernels are made for cuda:90, not for cuda:80": request(
        "causal", 128, long(4096), device=DEVICES["a100"]
    ),
    "its kernels are made for cuda:90, not for cuda:100": request(
        "causal", 128, long(4096), device=DEVICES["b200"]
    ),
    "it has 16-bit tensors alone, not fp32": request("causal", 128, long(4096), dtype="fp32"),
    "rows see 505 keys, and it is known to be faster from 1000 on at 64 columns": request(
        "causal", 64, long(1024)
    ),
    "rows see 64 keys, and it is known to be faster from 100 on at 128 columns": request(
        "causal", 128, long(128)
    ),
    "4 us at the roofline are less than the host needs to launch it": request(
        "causal", 128, Workload(1, 1024, 1024, 16, 16)
    ),
    "64 queries do not fill the 128 rows of its programs": request(
        "full", 128, Workload(8, 64, 16384, 32, 8)
    ),
    "no card has measured its forward with tiles of 256 columns": request(
        "causal", 256, long(4096)
    ),
    "no card has measured it with a tensor of pairs, bias": request("biased", 128, long(4096)),
    "no card has measured it with a mask that is a union, of several runs of tiles": request(
        "union", 128, long(4096)
    ),
    "no card has measured it with a mask whose bounds are loaded, n": request(
        "prefix_lm", 128, long(4096), phase="backward"
    ),
    "no card has measured it with a mask whose tiles are listed by data": request(
        "documents", 128, long(4096)
    ),
    "it has the softmax family alone, not the state family": request("lightning", 128, long(4096)),
    "a head of 256 columns passes 128": request("causal", 256, long(4096), phase="backward"),
    "a step is bound by memory, and triton's kernel of one takes one row": request(
        "causal", 128, Workload(64, 1, 4096, 32, 8), phase="decode", cache="contiguous"
    ),
    "on a CPU its schedule gains nothing; ask for it to have it interpreted": request(
        "causal", 128, long(4096), launcher="interpreted"
    ),
    "what launches binaries hands over pointers, and its kernels take descriptors": request(
        "causal", 128, long(4096), launcher="packaged"
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", LEFT)
def test_triton_is_taken_elsewhere_and_the_plan_says_why(why):
    assert (LEFT[why].backend, backend_of(LEFT[why])) == (None, "triton")
    plan = plans(LEFT[why])[0]
    assert (plan.backend, plan.backend_reason) == ("triton", f"not gluon: {why}")
    assert plan.otherwise == ()


def test_packed_sequences_go_to_triton():
    packed = over_sequences(VARIANTS["causal"])
    found = choose_backend(replace(TAKEN["fp16 as bf16"], variant=packed), analyse(packed))
    assert found.reason == "not gluon: its grid and its copies know one sequence a batch entry"


def test_a_plan_of_gluon_has_one_of_triton_for_tensors_without_descriptors():
    asked = TAKEN["128 columns from T=1024 on"]
    plan = plans(asked)[0]
    portable = plans(replace(asked, backend="triton"))
    assert (plan.backend, plan.backend_reason.split(":")[0]) == (
        "gluon", "measured on an H100 at 128 columns",
    )  # fmt: skip
    assert [item.digest for item in plan.otherwise] == [item.digest for item in portable]
    text = explain_plan(plan)
    why = "where the copy engine cannot read q, k or v as they lie"
    assert f"\nwhy this backend: {plan.backend_reason}\n" in text
    assert f"\notherwise: triton, {why}: {portable[0].passes[0]}\n" in text


def test_a_backend_that_is_asked_for_has_nothing_beside_it():
    plan = plans(replace(TAKEN["fp16 as bf16"], backend="gluon"))[0]
    assert (plan.backend, plan.backend_reason, plan.otherwise) == ("gluon", "asked for", ())


def test_a_budget_that_no_tile_of_gluon_fits_goes_to_triton():
    small = replace(TAKEN["fp16 as bf16"], device=DEVICES["h100"].with_sram(90_000))
    plan = plans(small)[0]
    assert plan.backend == "triton"
    assert plan.backend_reason == "not gluon: none of its tiles fits the budget"


def test_a_choice_for_one_workload_holds_for_tiles_that_are_ranked_for_another():
    short = request("causal", 128, Workload(1, 64, 64, 1, 1))
    chosen = choose_backend(TAKEN["fp16 as bf16"], analyse(short.variant))
    assert plans(short, chosen)[0].backend == "gluon"
    assert plans(short)[0].backend == "triton"


@pytest.mark.parametrize(
    ("name", "tiles"),
    [
        ("full", "BT=192 BS=128 BK=64 BV=64 NW=3 P=132"),
        ("causal", "BT=128 BS=128 BK=64 BV=64 NW=2 P=132"),
    ],
)
def test_three_groups_share_a_tile_where_no_row_is_masked(name, tiles):
    assert tiles in str(plans(request(name, 64, long(16384)))[0].passes[0])


def test_what_is_built_ahead_of_time_is_tritons_unless_it_is_asked_for():
    for wheel in (None, "mine"):
        (facts,) = Order(("cuda:90",), ("128",), ("bf16",), wheel=wheel).facts()
        plan = plans(facts.request(shipped()["flash"]))[0]
        assert plan.backend == "triton"
        assert plan.backend_reason.startswith("not gluon: what launches binaries")
    (facts,) = Order(("cuda:90",), ("128",), ("bf16",), backend="gluon").facts()
    assert plans(facts.request(shipped()["flash"]))[0].backend == "gluon"
