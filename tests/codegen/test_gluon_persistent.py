"""Persistent programs of the second backend: which places each takes, by the emitted functions."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans, predicted_us
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads
from tests.conftest import ROOT

VARIANTS = loads((ROOT / "tests" / "gpu" / "gluon_variants.toml").read_text(encoding="utf-8"))
BT = 128


def ranked(name: str, dim: int = 128) -> tuple[Plan, ...]:
    return plans(Request(VARIANTS[name], DEVICES["h100"], (dim, dim), backend="gluon"))


def persistent(name: str, dim: int = 128) -> Plan:
    return next(plan for plan in ranked(name, dim) if "P" in plan.passes[0].tile)


def places(name: str, batch: int, heads: int, tokens: int, keys: int, programs: int):
    """(tile, batch, head) of every place, by program, as the emitted text computes them."""
    text = render(persistent(name))
    parts = [
        re.search(rf"@gluon\.jit\n(def {name}_online_{part}\(.*?)\n\n\n", text, re.S)[1]
        for part in ("turns", "place", "tile")
    ]
    found = []
    for program in range(programs):
        gl = SimpleNamespace(
            cdiv=lambda a, b: -(-a // b), minimum=min, maximum=max,
            program_id=lambda _, program=program: program, num_programs=lambda _: programs,
        )  # fmt: skip
        space = {"gl": gl, "BT": BT, "BS": 128}
        for part in parts:
            exec(part, space)
        turns, place, tile = (space[f"{name}_online_{p}"] for p in ("turns", "place", "tile"))
        found.append(
            [
                tile(place(turn), tokens, keys, heads, heads)[:3]
                for turn in range(turns(batch, tokens, heads))
            ]
        )
    return found


@pytest.mark.parametrize("name", ["causal", "plain", "windowed"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 129), (2, 3, 1000), (1, 5, 385), (3, 2, 2048)])
@pytest.mark.parametrize("programs", [1, 2, 5, 132])
def test_every_tile_of_rows_is_taken_once(name, shape, programs):
    batch, heads, tokens = shape
    tiles = -(-tokens // BT)
    programs = min(programs, batch * heads * tiles)
    taken = [one for own in places(name, batch, heads, tokens, tokens, programs) for one in own]
    everything = [(t, b, h) for b in range(batch) for h in range(heads) for t in range(tiles)]
    assert sorted(taken) == sorted(everything)


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_programs_of_a_causal_mask_see_as_many_keys_each(tokens):
    """A row tile sees keys in proportion to its number: heavy and light ones are paired."""
    work = [
        sum(tile + 1 for tile, _, _ in taken)
        for taken in places("causal", 1, 132, tokens, tokens, 132)
    ]
    assert max(work) == min(work)
    # in the order of the rows they would not be
    tiles = tokens // BT
    plain = [sum(n % tiles + 1 for n in range(p, 132 * tiles, 132)) for p in range(132)]
    assert max(plain) >= 1.2 * min(plain)


def test_persistent_programs_come_first_as_a_card_ranked_them():
    for dim in (64, 128):
        tiles = [plan.passes[0].tile for plan in ranked("causal", dim)]
        # those that no card has timed stand last
        order = [(0 if "ORDERED" in tile else 2) + ("P" in tile) for tile in tiles]
        assert order == sorted(order, reverse=True) and set(order) == {0, 1, 2, 3}
    first, *behind = (str(plan.passes[0]) for plan in ranked("causal"))
    assert " P=132" in first
    reasons = {item.candidate: item.reason for item in ranked("causal")[0].rejected}
    slower = "ranked behind: such kernels were slower on an H100"
    untimed = "ranked behind: no card has timed such kernels; attnc tune does"
    for step in behind:
        assert reasons[step] == (untimed if "ORDERED" in step else slower)


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("dim", [64, 128])
def test_every_candidate_has_a_prediction_that_tuning_can_show(dim, phase):
    request = Request(
        VARIANTS["causal"], DEVICES["h100"], (dim, dim), backend="gluon", phase=phase,
        deterministic=False,
    )  # fmt: skip
    found = plans(request)
    assert len({plan.passes[0].num_stages for plan in found}) > 1
    assert all(predicted_us(plan, request) > 0 for plan in found)


@pytest.mark.parametrize("name", ["bounded", "anchored", "packed"])
def test_no_candidate_is_called_slower_where_no_card_has_timed_the_mask(name):
    first, *behind = ranked(name)
    reasons = {item.candidate: item.reason for item in first.rejected}
    untimed = "ranked behind: no card has timed such kernels; attnc tune does"
    assert behind and all(reasons[str(plan.passes[-1])] == untimed for plan in behind)


def test_a_persistent_launch_has_as_many_programs_as_multiprocessors():
    text = render(persistent("causal"))
    assert "[(min(132, triton.cdiv(TQ, 128) * B * HQ),)]" in text
    assert "P=132" in text and '"B", "TQ", "TK", "HQ", "HKV"' in text
    compile(text, "persistent", "exec")


def test_every_wait_of_a_buffer_has_who_frees_it():
    """Consumers free rows, and every tile of keys and values, the last of a place too."""
    text = render(persistent("windowed"))
    rows = text.split("def windowed_online_rows(")[1].split("\n\n\n")[0]
    runs = rows.count("    for i_s in range(")
    assert rows.count("arrive(q_free") == 1
    assert rows.count("arrive(k_free") == rows.count("arrive(v_free") == runs + 1
    copies = text.split("def windowed_online_copies(")[1].split("\n\n\n")[0]
    assert re.findall(r"wait\((\w+)\.", copies) == ["q_free", "k_free", "v_free"]
