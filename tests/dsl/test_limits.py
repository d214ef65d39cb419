"""Hostile input is refused at once, and nothing in it ever runs."""

from __future__ import annotations

import time

import pytest

from attnc.dsl import loads
from attnc.errors import DeclarationError, LimitExceeded, SyntaxRefused, UnknownName


def softmax(score: str = "s", mask: str = "full") -> str:
    return f'[v]\nfeature_map = "softmax"\nscale = 1.0\nscore = "{score}"\nmask = "{mask}"\n'


def state(feature_map: str) -> str:
    return f'[v]\nfeature_map = "{feature_map}"\nscale = 1.0\nnormalize = "none"\n'


HOSTILE = {
    "a long text": (softmax("s + " * 600 + "s"), LimitExceeded),
    "many nodes": (softmax("+".join(["s"] * 150)), LimitExceeded),
    "many signs": (softmax("-" * 1500 + "s"), LimitExceeded),
    "many complements": (softmax(mask="~" * 1500 + "causal"), LimitExceeded),
    "deep parentheses": (softmax("(" * 900 + "s" + ")" * 900), DeclarationError),
    "deep indices": (softmax("s" + "[s" * 600 + "]" * 600), DeclarationError),
    "a huge exponent of ten": (softmax("1e999999999*s"), LimitExceeded),
    "a tiny exponent of ten": (softmax("1e-999999999*s"), LimitExceeded),
    "an endless exponent": (softmax("1e" + "9" * 1500), LimitExceeded),
    "many digits": (softmax("9" * 1500), LimitExceeded),
    "a long fraction": (softmax("0." + "7" * 1500), LimitExceeded),
    "a tower of powers": (softmax("9**9**9**9**9"), LimitExceeded),
    "a power of a product": (softmax("s**(4*5)"), LimitExceeded),
    "a power of a power": (softmax("s**(2**(2**8))"), LimitExceeded),
    "a negative power": (softmax("s**-17"), LimitExceeded),
    "a high degree": (state("s**9"), LimitExceeded),
    "a hidden degree": (state("((s**2 + 1)**2)**3"), LimitExceeded),
    "a high series": (state("taylor(999999)"), LimitExceeded),
    "a huge series": (state("taylor(1e30)"), LimitExceeded),
    "stripes": (softmax(mask=" | ".join(f"(i == {n})" for n in range(25))), LimitExceeded),
    "an import": (softmax("__import__('os')"), UnknownName),
    "a call of a call": (softmax("__import__('os').system('x')"), SyntaxRefused),
    "an attribute": (softmax("s.__class__"), SyntaxRefused),
    "a lambda": (softmax("(lambda: s)()"), SyntaxRefused),
    "a comprehension": (softmax("[s for s in (1, 2)]"), SyntaxRefused),
    "an f-string": (softmax("f'{s}'"), SyntaxRefused),
    "a walrus": (softmax("(s := 1)"), SyntaxRefused),
    "a string": (softmax("s * 'a'"), SyntaxRefused),
    "a complex number": (softmax("1j*s"), SyntaxRefused),
    "another alphabet": (softmax("\u0455 + 1"), SyntaxRefused),
    "a null byte": (softmax("s\\u0000"), SyntaxRefused),
    "a new line": (softmax("s\\n+ 1"), SyntaxRefused),
    "deep arrays": ("a = " + "[" * 100_000, DeclarationError),
    "a line of quotes": ("[v]\nscore = " + '"' * 100_001, DeclarationError),
    "a name that breaks out": ('["x\\nimport os"]\nfeature_map = "softmax"\nscale = 1.0', None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_input_is_refused_within_two_seconds(case):
    text, error = HOSTILE[case]
    start = time.process_time()
    with pytest.raises(error or DeclarationError):
        loads(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        softmax("+".join(["s"] * 100)),
        softmax("-" * 190 + "s"),
        softmax("s" + "**s" * 95),
        softmax("tanh(" * 95 + "s" + ")" * 95),
        softmax(mask=" | ".join(f"(i - j == {3 * n})" for n in range(16))),
        softmax(mask="(" + " & ".join(f"(i != {n})" for n in range(4)) + ")"),
        state("((1 + s)**2)**4"),
    ],
)
def test_what_is_just_within_the_limits_answers_within_two_seconds(text):
    start = time.process_time()
    variant = loads(text)["v"]
    assert len(variant.digest) == 64
    variant.warnings()
    assert time.process_time() - start < 2


def test_a_power_of_two_in_the_head_has_no_constant_exponent():
    assert loads(softmax("s + 2**(-5 - h)"))["v"].family == "softmax"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (softmax("s + log(0)"), "log(0) has no value: a logarithm is one of a positive number"),
        (softmax("s*log(-h)"), "log(-h) has no value: a logarithm is one of a positive number"),
        (softmax("s - log1p(-2)"), "log1p(-2) has no value: log1p is one of a number over -1"),
        (
            softmax("s*sqrt(-1 - h)"),
            "sqrt(-1 - h) has no value: a root is one of a number that is not negative",
        ),
        (
            state("x*(-8)**(1/3)"),
            "(-8)**(1 / 3) has no value: a negative number has whole powers alone",
        ),
        (softmax("s/log(1)"), "s / log(1) has no value: it divides by 0"),
        (softmax("s + 0**(2 - 3)"), "0**(2 - 3) has no value: it divides by 0"),
        (softmax("s*exp(100)"), "exp(100) is over 1e30 in size"),
        (state("x - exp(99)"), "exp(99) is over 1e30 in size"),
    ],
)
def test_a_part_that_has_no_value_for_any_tensors_is_refused_where_it_stands(text, said):
    with pytest.raises(DeclarationError) as refused:
        loads(text)
    assert refused.value.message == said
    assert "^^" in str(refused.value)


@pytest.mark.parametrize(
    "score", ["s**0.5", "log(s)", "log(h)", "(-1)**h", "0**h", "s/h", "exp(-99)"]
)
def test_a_part_that_has_a_value_for_some_tensors_is_legal(score):
    assert loads(softmax(score))["v"].family == "softmax"
