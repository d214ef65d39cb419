"""A digest covers what a variant means, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnc.dsl import Variant, load, loads

ROOT = Path(__file__).parent.parent.parent
BASE = """
[base]
feature_map = "softmax"
scale = 0.5
score = "softcap(s, 7) - slope[h]*(i - j) + u[b,i,h]"
mask = "causal & window(37)"
params.slope = { shape = ["h"], grad = true }
inputs.u = { shape = ["b", "t", "h"] }
"""
STATE = """
[state]
feature_map = "taylor(2)"
scale = 1.0
mask = "causal"
log_decay = "-slope[h] - 0.5"
normalize = "none"
params.slope = { shape = ["h"] }
"""


def one(text: str) -> Variant:
    (variant,) = loads(text).values()
    return variant


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return one(text.replace(old, new)).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[base]", "[another]"),
        ("scale = 0.5", 'scale = "1/2"'),
        ("softcap(s, 7) - slope[h]*(i - j)", "  softcap(s,7)-slope[h] * (i-j)"),
        ("+ u[b,i,h]", "+ u[i,h]"),
        ("softcap(s, 7)", "softcap(s, 3 + 4)"),
        ("slope[h]*(i - j)", "(i - j)*slope[h]"),
        ("causal & window(37)", "window(37) & causal"),
        ("causal & window(37)", "~(j > i) & (i - j < 38)"),
        ('mask = "causal', 'dim = { qk = 32, v = 64 }\nmask = "causal'),
        ('mask = "causal', 'heads = { q = 8, kv = 2 }\nmask = "causal'),
        ('mask = "causal', 'chunk = "auto"\nmask = "causal'),
        ("inputs.u", 'params.unused = { shape = ["h"] }\ninputs.u'),
    ],
)
def test_what_does_not_change_the_meaning_does_not_change_the_digest(old, new):
    assert changed(BASE, old, new) == one(BASE).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale = 0.5", 'scale = "rsqrt(d)"'),
        ("softcap(s, 7)", "softcap(s, 8)"),
        ("(i - j)", "(j - i)"),
        ("- slope", "+ slope"),
        ("window(37)", "window(38)"),
        ("grad = true", "grad = false"),
        ("u[b,i,h]", "u[b,j,h]"),
        ("inputs.u", "params.u"),
    ],
)
def test_what_changes_the_meaning_changes_the_digest(old, new):
    assert changed(BASE, old, new) != one(BASE).digest


def test_the_state_family_digests_its_weight_its_decay_and_its_normaliser():
    base = one(STATE).digest
    assert changed(STATE, "taylor(2)", "1 + s + s**2/2") == base
    assert changed(STATE, "-slope[h] - 0.5", "-slope[h] - 1/2") == base
    assert changed(STATE, "taylor(2)", "taylor(3)") != base
    assert changed(STATE, "0.5", "0.25") != base
    assert changed(STATE, '"none"', '"sum"') != base
    assert changed(STATE, 'mask = "causal', 'chunk = 64\nmask = "causal') != base


def test_variants_of_one_meaning_and_two_names_differ_but_share_a_digest():
    first, second = one(BASE), one(BASE.replace("[base]", "[another]"))
    assert first != second
    assert first.digest == second.digest


def test_equality_heeds_the_facts_to_plan_with():
    sized = BASE + "dim = { qk = 32, v = 64 }\n"
    assert one(sized) != one(BASE)
    assert one(sized).digest == one(BASE).digest


def test_digests_do_not_depend_on_the_hash_seed():
    code = (
        "import sys; from attnc.dsl import load\n"
        "for path in sys.argv[1:]:\n"
        "    for name, variant in load(path).items(): print(name, variant.digest)"
    )
    files = sorted(str(path) for path in (ROOT / "attnc" / "ops" / "variants").glob("*.toml"))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, *files],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    here = [f"{name} {v.digest}" for path in files for name, v in load(path).items()]
    assert outputs == {"\n".join(here) + "\n"}
