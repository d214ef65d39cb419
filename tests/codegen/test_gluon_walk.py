"""Which tiles the second backend visits, by the emitted functions, and which the mask shows."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads

BT = BS = 128
MASKS = [
    "causal & (window(100) | prefix(4))",
    "causal & (window(300) | (i - j >= 500))",
    "(causal & window(30)) | (j < 10) | ((j >= 290) & (j < 310) & (2 * i >= j))",
    "((i < 40) & (j > i)) | (i - j > 250)",
    "((j >= 150) & (j < 250)) | (j >= 520)",
]


def emitted(mask: str) -> tuple[object, object]:
    """The functions that find a program's tiles and the next run of them."""
    toml = f'[m]\nfeature_map = "softmax"\nscale = 1.0\nmask = "{mask}"\n'
    found = plans(Request(loads(toml)["m"], DEVICES["h100"], (64, 64), backend="gluon"))
    text = render(next(plan for plan in found if "P" in plan.passes[0].tile))
    gl = SimpleNamespace(
        cdiv=lambda a, b: -(-a // b), minimum=min, maximum=max,
        where=lambda condition, one, other: one if condition else other,
    )  # fmt: skip
    space = {"gl": gl, "BT": BT, "BS": BS}
    for part in ("run", "tile"):
        exec(re.search(rf"@gluon\.jit\n(def m_online_{part}\(.*?)\n\n\n", text, re.S)[1], space)
    return space["m_online_tile"], space["m_online_run"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [(600, 600), (100, 611), (450, 300), (1, 640)])
def test_a_union_is_walked_over_in_order_without_the_tiles_that_it_hides(mask, lengths):
    tq, tk = lengths
    tile, run = emitted(mask)
    form = loads(f'[m]\nfeature_map = "softmax"\nscale = 1.0\nmask = "{mask}"\n')["m"].mask_form
    for place in range(-(-tq // BT)):
        i_t, _, _, _, start, reach, clauses = tile(place, tq, tk, 1, 1)
        rows = range(i_t * BT + tk - tq, min((i_t + 1) * BT, tq) + tk - tq)
        seen = {j // BS * BS for j in range(tk) if any(form.visible(i, j) for i in rows)}
        whole = {
            j for j in range(0, tk - BS + 1, BS)
            if all(form.visible(i, c) for i in rows for c in (j, j + BS // 2, j + BS - 1))
        }  # fmt: skip
        visited, unmasked = [start], set()
        end = start + BS
        while end < reach:
            lo, full_lo, full_hi, hi, end = run(end, clauses)
            visited += range(lo, hi, BS)
            unmasked |= set(range(full_lo, full_hi, BS))
        assert visited == sorted(set(visited)), "a tile is visited twice, or out of order"
        assert set(visited) >= seen, "a visible tile is left out"
        assert visited == [0] or len(set(visited) - seen) <= 1, "hidden tiles are visited"
        assert unmasked <= whole, "a tile runs without the mask code that it needs"
