"""Expressions that are no number whatever the tensors are: refused by the algebra, and at once."""

from __future__ import annotations

import pytest

from attnc.codegen.algebra import analyse
from attnc.dsl import loads
from attnc.errors import SyntaxRefused


def declared(score: str) -> str:
    return (
        f'[v]\nfeature_map = "softmax"\nscale = 1.0\nscore = "{score}"\n'
        'inputs.n = { shape = ["b"] }\nparams.p = { shape = ["h"], grad = true }\n'
    )


@pytest.mark.parametrize(
    ("score", "part"),
    [
        ("s + s/(h - h)", r"s / \(h - h\)"),
        ("s*(2 + log(i - i))", r"log\(i - i\)"),
        ("max(s, sqrt(-s**2))", r"sqrt\(-s\*\*2\)"),
        ("where(i > j, s, 1/(s - s))", r"1 / \(s - s\)"),
    ],
)
def test_a_part_that_is_no_real_number_is_named(score, part):
    with pytest.raises(SyntaxRefused, match=f"{part} has no value") as caught:
        analyse(loads(declared(score))["v"])
    assert "divides by 0 or is no real number" in str(caught.value)


@pytest.mark.parametrize("power", ["s", "h/2", "p[h]", "0.5*i", "sqrt(i)", "-abs(s)"])
def test_a_negative_number_has_no_powers_but_whole_ones(power):
    with pytest.raises(SyntaxRefused, match="a negative number has whole powers alone"):
        loads(declared(f"s*(-2)**({power})"))


@pytest.mark.parametrize("power", ["i", "h - j", "2*h + 1", "min(i, j)", "-3", "4/2", "n[b]"])
def test_a_negative_number_has_every_whole_power(power):
    assert analyse(loads(declared(f"s*(-2)**({power})"))["v"]).score is not None


@pytest.mark.parametrize("number", ["1e30", "-1e30", "1e29*10"])
def test_a_number_as_large_as_it_may_be_is_taken(number):
    assert analyse(loads(declared(f"where(i == j, s, {number})"))["v"]).score is not None
