"""Gluon's kernels on a CPU: every feature against the formula, and every guard they have."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from attnc.autotune.gluon_interpreter.faults import GluonFault
from attnc.autotune.gluon_interpreter.install import gluon_interpreted
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads
from attnc.errors import PlanError
from attnc.ops.reference.attend import attend
from attnc.ops.shipped import shipped
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.draw import draw_inputs
from attnc.ops.verification.verify import Shape, verify
from tests.conftest import ROOT

TOML = (ROOT / "tests" / "gpu" / "gluon_variants.toml").read_text(encoding="utf-8")
CPU = torch.device("cpu")
VARIANTS = loads(TOML.replace("] }", "], grad = true }"))
# a place of 128 rows meets tiles on both edges of the mask, and full ones between
ROWS = 768
SWEPT = {
    "w": "causal & window(450)",
    # two runs of tiles, in which some loop meets a tile of every kind
    "u": "causal & (window(300) | (i - j >= 500))",
    "l": "causal & blocks(kept, 128)",
}
SWEPT_VARIANTS = loads(
    "\n".join(
        f'[{name}]\nfeature_map = "softmax"\nscale = 0.1\nmask = "{mask}"\n'
        + ('inputs.kept = { shape = ["i/128", "j/128"] }' if "blocks" in mask else "")
        for name, mask in SWEPT.items()
    )
)
# for each tile: three blocks of six with mask code, from the front, and three without
LISTS = torch.tensor([3, 3, 0, 1, 2, 5, 4, 3], dtype=torch.int32).repeat(1, 6, 1)


def hold(name: str, *shapes: Shape, dtype: str = "bf16") -> None:
    report = verify(VARIANTS[name], backend="gluon", dtypes=[dtype], shapes=shapes, seed=len(name))
    assert report.passed, report.failures[0]
    assert not report.skipped and {row.what for row in report.rows} >= {"online form", "lse"}
    assert any(row.what.startswith("d q") for row in report.rows)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_feature_is_its_formula_forward_and_backward(name):
    hold(name, Shape(1, 300, 300, 2, 1, 64, 64))


@pytest.mark.parametrize("name", ["capped", "banded", "sunk"])
def test_fp16_is_right_too(name):
    hold(name, Shape(1, 200, 200, 2, 2, 64, 64), dtype="fp16")


@pytest.mark.parametrize("dim", [80, 96, 128])
def test_wide_and_odd_heads_are_right(dim):
    hold("windowed", Shape(1, 150, 150, 2, 1, dim, dim, strided=True))


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("lengths", [(1, 300), (100, 333), (333, 100)])
@pytest.mark.parametrize("name", ["causal", "banded", "prompted", "scattered"])
def test_queries_stand_at_the_last_keys(name, lengths):
    hold(name, Shape(1, *lengths, 2, 1, 64, 64))


# what tells the forward's kernels apart
KINDS = frozenset({"P", "ORDERED"})


@cache
def swept(symbol: str, kind: frozenset[str]) -> Plan:
    variant, kernel = SWEPT_VARIANTS[symbol[0]], symbol[2:]
    phase = "forward" if kernel == "online" else "backward"
    asked = Request(variant, DEVICES["h100"], (64, 64), backend="gluon", phase=phase)
    found = plans(replace(asked, deterministic=kernel != "dqkv"))
    mine = [plan for plan in found if kernel in {step.kernel.name for step in plan.passes}]
    return next(plan for plan in mine if kind == KINDS & set(plan.passes[-1].tile))


def drawn() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, ROWS, 1, 64, generator=generator).bfloat16() for _ in range(4)]


def run(text: str, path: Path, symbol: str, tensors: list[torch.Tensor]) -> None:
    """One program of one of a module's kernels: the longest, or one that takes all places."""
    text = re.sub(r"\[\(.*,\)\]\(\n", "[(1,)](\n", text)
    # the other kernels are not launched, and leave what they would write NaN
    text = re.sub(rf"    (?!{symbol}\b)\w+\[\(1,\)\]\(\n(?: {{8}}.*\n)+    \)\n", "", text)
    text = re.sub(r"(\w+_blocks = )torch\.empty\(lengths, .*\)", r"\1LISTS.clone()", text)
    path.write_text(text, encoding="utf-8")
    names = {"__name__": path.stem, "__file__": str(path), "LISTS": LISTS}
    with gluon_interpreted():
        exec(compile(text, path, "exec"), names)
    names["forward" if symbol.endswith("_online") else "backward"](*tensors)


GUARD = re.compile(
    r" +(?:mbarrier\.(?:wait|arrive|expect)|fence_async_shared\(|tma\.store_wait"
    r"|.* = warpgroup_mma_wait)"
)
# A program that ends has nothing to give back for. The other waits stand behind one that says as
# much: what `first` lets go is let go after `second`, and `rows` are there before `second` is.
NEEDLESS = {
    ("w_online", frozenset({"P"})): [],
    ("w_online", KINDS): [],
    ("w_online", frozenset()): [
        "mbarrier.arrive(k_free.index(slot), count=1)",
        "mbarrier.arrive(v_free.index(before), count=1)",
    ],
    ("w_dq", frozenset()): [
        "mbarrier.wait(second_free.index(slot), phase ^ 1)",
        "mbarrier.arrive(second_free.index(slot), count=1)",
        "mbarrier.arrive(first_free.index(slot), count=1)",
    ],
    ("w_dkv", frozenset()): [
        "mbarrier.wait(second_free.index(slot), phase ^ 1)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.arrive(first_free.index(slot), count=1)",
        "mbarrier.arrive(second_free.index(slot), count=1)",
    ],
    ("w_dqkv", frozenset()): [
        "mbarrier.wait(second_free.index(slot), phase ^ 1)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
    ],
    # of two runs: behind each loop of the first stands a tile that waits for what it lets go
    ("u_online", frozenset({"P"})): [],
    ("u_dq", frozenset()): ["mbarrier.wait(second_free.index(slot), phase ^ 1)"],
    ("u_dkv", frozenset()): [
        "mbarrier.wait(second_free.index(slot), phase ^ 1)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
    ],
    ("l_online", frozenset({"P"})): [],
    ("l_dkv", frozenset()): [
        "mbarrier.wait(second_free.index(slot), phase ^ 1)",
        "mbarrier.wait(rows_full.index(slot), phase)",
        "mbarrier.wait(rows_full.index(slot), phase)",
    ],
}


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(("symbol", "kind"), NEEDLESS)
def test_a_kernel_without_any_one_of_its_guards_is_a_fault(symbol, kind, tmp_path):
    q, k, v, do = drawn()
    lse = torch.zeros(1, 1, ROWS)
    phase = "forward" if symbol.endswith("_online") else "backward"
    table = [torch.ones(6, 6)] if symbol.startswith("l_") else []
    tensors = [q, k, v, *table] + ([] if phase == "forward" else [q, lse, do, lse])
    lines = render(swept(symbol, kind)).split("\n")
    run("\n".join(lines), tmp_path / "whole.py", symbol, tensors)
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"def {symbol}_producer"))
    end = next(n for n, line in enumerate(lines) if line.startswith(f"def {symbol}("))
    guards = [n for n in range(begin, end) if GUARD.match(lines[n])]
    # the order of the groups' products is for speed alone
    guards = [n for n in guards if "wait(asks" not in lines[n]]
    assert len(guards) > 20
    left: list[str] = []
    for number in guards:
        line = lines[number]
        without = [*lines[:number], line[: -len(line.lstrip())] + "pass", *lines[number + 1 :]]
        try:
            run("\n".join(without), tmp_path / f"without_{number}.py", symbol, tensors)
        except GluonFault:
            continue
        left.append(line.strip())
    assert left == NEEDLESS[symbol, kind]


def test_verifying_a_backend_runs_no_others_kernels_and_says_what_it_left_out():
    shapes = [Shape(1, 5, 5, 1, 1, 60, 60), Shape(1, 5, 5, 1, 1, 256, 256)]
    report = verify(VARIANTS["plain"], backend="gluon", dtypes=["bf16"], shapes=shapes, seed=1)
    assert report.passed and {row.what for row in report.rows} == {"online form", "lse"}
    odd, wide = report.skipped
    assert odd.startswith("bf16 B=1 T=5 H=1 D=60: not gluon: rows of a tensor have to be multiples")
    assert wide == "gradients, bf16 B=1 T=5 H=1 D=256: not gluon: a head of 256 columns passes 128"


def test_verifying_a_backend_that_takes_nothing_of_a_variant_is_an_error():
    with pytest.raises(PlanError, match="the gluon backend takes no call of 'lightning'") as caught:
        verify(shipped()["lightning"], backend="gluon", seed=1)
    assert caught.value.notes == ("it has the softmax family alone, not the state family",)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("kind", [frozenset({"P"}), KINDS], ids=["persistent", "ordered"])
@pytest.mark.parametrize("name", ["causal", "sunk", "bounded", "scattered"])
def test_a_program_of_several_places_gives_the_formula_at_each(name, kind, tmp_path):
    few = replace(DEVICES["h100"], sms=3)
    found = plans(Request(VARIANTS[name], few, (64, 64), backend="gluon"))
    plan = next(plan for plan in found if kind == KINDS & set(plan.passes[-1].tile))
    path = tmp_path / "module.py"
    path.write_text(render(plan), encoding="utf-8")
    names = {"__name__": "module", "__file__": str(path)}
    with gluon_interpreted():
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), names)
    # ten places of two batch entries and two heads: some programs take four, some three
    generator = torch.Generator().manual_seed(4)
    inputs = draw_inputs(
        VARIANTS[name], Shape(2, 300, 300, 2, 1, 64, 64), torch.bfloat16, generator, CPU
    )
    out, lse = names["forward"](*inputs.qkv, *inputs.tensors.values())
    ref = attend(VARIANTS[name], *inputs.qkv, inputs.tensors, return_lse=True)
    rounded = attend(
        VARIANTS[name], *inputs.qkv, inputs.tensors, dtype=torch.float32, rounding=torch.bfloat16
    )
    assert check(out, ref.out, rounded.out).passed
    assert check_lse(lse, ref.lse).passed
