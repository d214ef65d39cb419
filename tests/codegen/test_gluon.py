"""The second backend from the same graph: what it takes, what it prints, what it says no to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.gluon.pair_schedule import pair_schedule
from attnc.codegen.gluon.schedule import schedule
from attnc.codegen.gluon.statement import ONLINE, gluon_text
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.codegen.tile_lists import tile_lists
from attnc.codegen.warp_groups import group_registers
from attnc.dsl.toml_file import loads
from attnc.errors import PlanError
from attnc.ops.shipped import shipped
from tests.conftest import ROOT

TOML = ROOT / "tests" / "gpu" / "gluon_variants.toml"
VARIANTS = loads(Path(TOML).read_text(encoding="utf-8"))
OTHERS = loads(
    "\n".join(
        f'[{name}]\nfeature_map = "softmax"\nscale = 1.0\n{more}'
        for name, more in {
            "none": 'mask = "causal & (j > i)"',
            "fine": 'mask = "blocks(kept, 64)"\ninputs.kept = { shape = ["i/64", "j/64"] }',
            "valued": 'value = "v * g[h]"\nparams.g = { shape = ["h"] }',
        }.items()
    )
)


def request(name: str, dim: int = 64, **facts) -> Request:
    variant = {**shipped(), **VARIANTS, **OTHERS}[name]
    dims = facts.pop("dims", (dim, dim))
    return Request(variant, DEVICES["h100"], dims, backend="gluon", **facts)


def test_a_backend_that_is_asked_for_is_taken():
    assert {plan.backend for plan in plans(request("flash"))} == {"gluon"}
    portable = plans(replace(request("flash"), backend="triton"))
    assert {plan.backend for plan in portable} == {"triton"}
    elsewhere = replace(request("flash"), backend=None, device=DEVICES["a100"])
    assert portable[0].passes[0].kernel == plans(elsewhere)[0].passes[0].kernel


REFUSED = {
    "its kernels are made for cuda:90, not for cuda:80": replace(
        request("flash"), device=DEVICES["a100"]
    ),
    "a head of 256 columns passes 128": request("flash", 256, phase="backward"),
    "it has the softmax family alone, not the state family": request("lightning"),
    "it has 16-bit tensors alone, not fp32": request("flash", dtype="fp32"),
    "a head of 320 columns passes 256": request("flash", 320),
    "tiles of 256 and 128 columns share no buffer of rows": request("flash", dims=(192, 128)),
    "rows of a tensor have to be multiples of 16 bytes for the copy engine": request("flash", 60),
    "the mask is empty: no tile is visited": request("none"),
    "tiles of 128 rows lie in no block of 64": request("fine"),
    "its copies go past registers, where the declared value would be made of v": request("valued"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_backend_cannot_take_is_refused_by_name_and_left_to_triton(why):
    asked = REFUSED[why]
    with pytest.raises(PlanError, match="the gluon backend cannot take") as caught:
        plans(asked)
    assert caught.value.notes == (why,)
    assert caught.value.hints == ("leave the backend out: triton takes all that can be declared",)
    if asked.variant.mask_form.clauses:
        left = plans(replace(asked, backend=None))[0]
        assert (left.backend, left.backend_reason) == ("triton", f"not gluon: {why}")


def test_an_unknown_backend_is_refused():
    with pytest.raises(PlanError, match="unknown backend 'cuda'") as caught:
        plans(replace(request("flash"), backend="cuda"))
    assert caught.value.notes == ("there are triton and gluon",)


def test_a_budget_that_no_tile_fits_is_an_error_with_the_reasons():
    small = replace(request("flash", 128), device=DEVICES["h100"].with_sram(50_000))
    with pytest.raises(PlanError, match="no tile of 'flash'"):
        plans(small)
    tight = plans(replace(request("flash", 128), device=DEVICES["h100"].with_sram(140_000)))
    assert any("of SRAM, the budget is 140,000 B" in item.reason for item in tight[0].rejected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_module_is_python_of_torch_and_triton_alone(name):
    text = render(plans(request(name, 128))[0])
    compile(text, name, "exec")
    imported = {
        line.split()[1].split(".")[0] for line in re.findall(r"^(?:from|import) .*", text, re.M)
    }
    assert imported == {"torch", "triton"}
    # but for the pass that lists tiles, and its import
    own = re.sub(
        r"@triton\.jit.*?\n\n\n(?=\S)|^import triton\.language.*\n", "", text, flags=re.S | re.M
    )
    assert "tl." not in own, "a statement was left in the portable language"


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("name", ["packed", "tabled"])
def test_a_plan_holds_what_lists_tiles_too_and_its_own_tiles_lie_in_listed_blocks(name, phase):
    for plan in plans(request(name, phase=phase)):
        listing = [step for step in plan.passes if not step.described]
        wanted = ["key_blocks"] if phase == "forward" else ["key_blocks", "row_blocks"]
        assert [step.kernel.name for step in listing] == wanted
        assert plan.passes[: len(listing)] == tuple(listing)
        for step in plan.passes[len(listing) :]:
            lists = tile_lists(plan.algebra.mask, of_rows=step.kernel.name != "dkv")
            sides = (step.tile["BT"], step.tile["BS"])
            assert lists.takes(*(sides[::-1] if step.kernel.name == "dkv" else sides))


def test_full_tiles_carry_no_mask_code():
    text = render(plans(request("windowed"))[0])
    full = text.split("# full tiles: every row sees every key, no mask\n")[1]
    assert "m_st" not in full.split("# keys right of the full tiles")[0]
    assert text.count("gl.where(m_st, b_s") == 3  # the first tile, and the two masked runs


def test_a_backward_prints_full_tiles_without_mask_code_too():
    text = render(plans(request("windowed", phase="backward"))[0])
    for full in text.split("# full tiles: every row sees every key, no mask\n")[1:]:
        assert "m_st" not in full.split("of the full tiles")[0]
    assert text.count("b_p = gl.where(m_st, b_p") == 4  # two masked runs a pass


def test_a_backward_of_wanted_tensors_keeps_a_partial_sum_a_consumer():
    variant = loads(TOML.read_text(encoding="utf-8").replace("] }", "], grad = true }"))["sloped"]
    text = render(plans(replace(request("sloped", phase="backward"), variant=variant))[0])
    assert "NT = triton.cdiv(TQ, 128) * 2\n" in text
    assert "NT = gl.cdiv(TQ, BT) * NW\n" in text
    assert "i_t = i_t * NW + GROUP\n" in text


# copies, which the copy engine makes, and the products and outputs are the template's own; a head
# that no expression reads moves pointers of copies alone
OWN_BACKWARD = {
    "head", "load b_q", "load b_k", "load b_v", "load b_do", "dot b_s", "dot b_dp", "fold dq",
    "fold dk", "fold dv", "store dq", "store dk", "store dv",
}  # fmt: skip
BACKWARD_NODES = [
    (number, node.name)
    for number, step in enumerate(plans(request("capped", phase="backward"))[0].passes)
    for node in step.kernel.graph.nodes()
    if node.name not in OWN_BACKWARD
]


@pytest.mark.parametrize(("number", "name"), BACKWARD_NODES)
def test_deleting_a_node_of_a_backward_changes_the_text(number, name):
    plan = plans(request("capped", phase="backward"))[0]
    step = plan.passes[number]
    kernel = replace(step.kernel, graph=step.kernel.graph.without(name))
    passes = list(plan.passes)
    passes[number] = replace(step, kernel=kernel)
    other = replace(plan, passes=tuple(passes))
    assert render(other).split('"""')[2] != render(plan).split('"""')[2]


def test_a_backward_asks_for_dv_before_it_has_the_gradients_of_scores():
    by_keys = plans(request("capped", phase="backward"))[0].passes[1].kernel.graph
    parts = pair_schedule(by_keys, masked=True)
    assert [fold.name for fold in parts.early] == ["b_dv"]
    assert [fold.name for fold in parts.late] == ["b_dk"]
    # the producer brings what the rows keep; the consumers meet it where they need it
    assert parts.brought(parts.scores) == ("b_m",)
    assert parts.brought(parts.gradients) == ("b_d",)


# copies, which the copy engine makes, and the two products are the template's own
OWN = {"load b_q", "load b_k", "load b_v", "dot b_s", "values", "store o"}
NODES = {node.name for node in plans(request("capped"))[0].passes[0].kernel.graph.nodes()}


@pytest.mark.parametrize("name", sorted(NODES - OWN))
def test_deleting_a_node_changes_the_text(name):
    plan = plans(request("capped"))[0]
    step = plan.passes[0]
    kernel = replace(step.kernel, graph=step.kernel.graph.without(name))
    other = replace(plan, passes=(replace(step, kernel=kernel),))
    assert render(other).split('"""')[2] != render(plan).split('"""')[2]


def test_what_needs_no_scores_is_done_while_they_are_made():
    graph = plans(request("paired"))[0].passes[0].kernel.graph
    parts = schedule(graph, masked=True)
    assert [node.op for node in parts.ahead] == ["load"]
    assert [node.buffer for node in parts.accumulator] == ["b_o"]
    assert (parts.pairs, parts.weights, parts.into) == ("b_s", "b_p", "b_o")
    assert {"b_mn", "b_p", "b_l", "b_m"} <= {node.buffer for node in parts.scores}


@pytest.mark.parametrize(
    ("portable", "gluon"),
    [
        ("b_l = tl.zeros([BT], ACC)", "b_l = gl.zeros([BW], ACC, ROWS)"),
        ("b_o = tl.zeros([BT, BV], ACC)", "b_o = gl.zeros([BW, BV], ACC, VALUES)"),
        ("b_l = tl.full([BT], 1.0, ACC)", "b_l = gl.full([BW], 1.0, ACC, ROWS)"),
        ("b_m = tl.zeros([BT], ACC) + b_sink", "b_m = gl.zeros([BW], ACC, ROWS) + b_sink"),
        ("b_p = tl.exp2(b_s - b_ms[:, None])", "b_p = gl.exp2(b_s - b_ms[:, None])"),
    ],
)  # fmt: skip
def test_a_tile_that_is_made_says_its_layout(portable, gluon):
    assert gluon_text(portable, ONLINE) == gluon


def test_rows_that_meet_the_accumulator_take_its_layout():
    line = "b_o = b_o / tl.where(b_l > 0.0, b_l, 1.0)[:, None]"
    converted = "gl.convert_layout(gl.where(b_l > 0.0, b_l, 1.0), ROWS_OF_VALUES)[:, None]"
    assert gluon_text(line, ONLINE, accumulator=True) == f"b_o = b_o / {converted}"


@pytest.mark.parametrize("groups", [2, 3])
def test_warps_share_no_more_registers_than_there_are(groups):
    shares = group_registers(groups)
    assert (groups * shares.consumer + shares.producer) * 128 <= 65536
    assert (groups + 1) * shares.every * 128 <= 65536
    assert all(count % 8 == 0 for count in (shares.every, shares.consumer, shares.producer))
