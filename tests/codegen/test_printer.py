"""Printed text against the expression it was printed from, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.expression.printer import LINE_WIDTH, Printer, number
from attnc.codegen.expression.symbolic import log1p, sigmoid, softplus, to_sympy
from attnc.dsl.variant import Variant
from tests.strategies import SCORES

X, Y = sympy.symbols("x y", real=True)
BINDINGS = {"x": "b_x", "y": "b_y"}


class _Arrays:
    """What printed text calls of triton.language, on numpy arrays."""

    exp, exp2, log, log2, sqrt, abs = np.exp, np.exp2, np.log, np.log2, np.sqrt, np.abs
    where, maximum, minimum = np.where, np.maximum, np.minimum


HELPERS = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "log1p": np.log1p,
    "power": np.power,
}
OWN = [{"sigmoid": HELPERS["sigmoid"], "softplus": HELPERS["softplus"], "log1p": np.log1p}, "numpy"]


def run(lines, name, **values):
    scope = {"tl": _Arrays, **HELPERS, **values}
    with np.errstate(all="ignore"):
        exec("\n".join(lines), scope)
    return scope[name]


EXPRESSIONS = [
    X - (Y - 1), X - Y * (X - 1), -(X + Y) * 2, -X * Y, 2 / (X * Y), X / Y / 3, (X + Y) / (X - 4),
    X**3 - X**2, 1 / X**2, sympy.sqrt(X), X ** sympy.Rational(3, 2), X ** (-sympy.Rational(1, 2)),
    2**X, -(2 ** (-5 - X)), X**Y, sympy.exp(-X) - sympy.log(X), sympy.Abs(X - Y),
    sympy.Max(X, Y, 1), sympy.Min(X - Y, 0), sympy.tanh(X / 5) * 5, sigmoid(X) - softplus(-Y),
    log1p(-sympy.exp(-X)), sympy.Piecewise((X, X > Y), (Y**2, True)),
    sympy.Piecewise((X, (X > Y) & (X < 2)), (Y, True)),
    sympy.Piecewise((1, sympy.Not((X > Y) & (X > 1))), (2, True)), sympy.pi * X, -(-X - 1) * -Y,
    sympy.Rational(1, 3) * X - sympy.Rational(7, 11), (X - Y) ** 2 * -3, sympy.sign(X - Y),
]  # fmt: skip


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_the_text_computes_what_the_expression_is(expr):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.1, 3, (2, 64))
    lines = Printer(BINDINGS).statements("b_o", expr)
    expected = sympy.lambdify((X, Y), expr, OWN)(x, y)
    np.testing.assert_allclose(run(lines, "b_o", b_x=x, b_y=y), expected, rtol=1e-12, atol=1e-12)


def test_a_power_of_a_number_other_than_two_is_printed():
    lines = Printer(BINDINGS).statements("b_o", 3**X)
    np.testing.assert_allclose(run(lines, "b_o", b_x=np.arange(3.0)), [1, 3, 9], rtol=1e-12)


def test_a_choice_of_several_conditions_is_split():
    expr = sympy.Piecewise((X, (X > Y) & (X < 2)), (Y, (X < 1) | (Y > 2)), (0, True))
    lines = Printer(BINDINGS).statements("b_o", expr)
    got = run(lines, "b_o", b_x=np.array([1.5, 0.5, 2.5]), b_y=np.array([1.0, 0.7, 2.2]))
    np.testing.assert_allclose(got, [1.5, 0.7, 2.2])


def test_a_comparison_of_a_choice_is_printed_on_one_line_and_on_several():
    """sympy turns it into a choice of comparisons, ITE."""
    chosen = sympy.Piecewise((X - 1, X > Y), (Y, True))
    expr = sympy.Piecewise((X, chosen > 1), (-Y, True))
    assert expr.has(sympy.ITE)
    x, y = np.array([3.0, 1.5, 0.5, 0.2]), np.array([1.0, 1.0, 2.0, 0.3])
    for names in ("b_x", "b_y"), ("b_" + "x" * 40, "b_" + "y" * 40):
        lines = Printer(dict(zip("xy", names, strict=True))).statements("b_o", expr)
        got = run(lines, "b_o", **dict(zip(names, (x, y), strict=True)))
        np.testing.assert_allclose(got, [3.0, -1.0, 0.5, -0.3])


# the printer cannot split a choice whose conditions alone are over a line
SPLIT = [score for score in SCORES if " | " not in score]


@settings(max_examples=60, deadline=None)
@given(wrappers=st.lists(st.sampled_from(SPLIT), min_size=1, max_size=7))
def test_drawn_scores_are_split_under_a_hundred_columns_and_mean_the_same(wrappers):
    score = "s"
    for wrapper in wrappers:
        score = wrapper.format(score)
    declared = {
        "slope": ["h"], "bias": ["h"], "shared": ["hkv"], "gain": [], "table": ["b", "h"],
    }  # fmt: skip
    inputs = {"u": ["b", "t", "h"], "y": ["b", "t"], "rel": ["h", "i", "j"]}
    inputs |= {"back": ["j", "b", "i"], "late": ["t", "h", "b"]}
    expr = to_sympy(
        Variant(
            "drawn", feature_map="softmax", scale=1.0, score=score,
            params={n: {"shape": axes} for n, axes in declared.items()},
            inputs={n: {"shape": axes} for n, axes in inputs.items()},
        ).score
    )  # fmt: skip
    symbols = sorted(expr.free_symbols, key=str)
    names = {symbol.name: f"b_a_rather_long_name_{n}" for n, symbol in enumerate(symbols)}
    lines = Printer(names).statements("b_s", expr)
    # eight columns of indent stand before each
    assert all(len(line) <= LINE_WIDTH for line in lines)
    values = [np.float64(0.3 + 0.37 * n) for n in range(len(symbols))]
    given_names = dict(zip(names.values(), values, strict=True))
    with np.errstate(all="ignore"):
        expected = sympy.lambdify(symbols, expr, OWN)(*values)
    got = run(lines, "b_s", **given_names)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


LONG = [sympy.Symbol(f"y{n}", real=True) for n in range(14)]


@pytest.mark.parametrize("joined", [sympy.Add, sympy.Mul, sympy.Max, sympy.Min])
@pytest.mark.parametrize(
    "numbers", [[3], [-sympy.Rational(1, 7)], [sympy.log(n + 2) for n in range(9)]], ids=str
)
def test_a_statement_split_into_many_parts_keeps_its_numbers(joined, numbers):
    parts = [1 + sympy.tanh(y) * sigmoid(y - 1) for y in LONG]
    expr = joined(*numbers, *parts)
    names = {y.name: f"b_a_rather_long_name_of_{y.name}" for y in LONG}
    lines = Printer(names).statements("b_o", expr)
    assert all(len(line) <= LINE_WIDTH for line in lines)
    values = np.random.default_rng(0).uniform(-2, 2, len(LONG))
    expected = sympy.lambdify(LONG, expr, OWN)(*values)
    got = run(lines, "b_o", **dict(zip(names.values(), values, strict=True)))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("exponent", [9, 11, 16, -16, 37, 256])
def test_a_power_too_long_for_a_line_is_one_of_squares(exponent):
    lines = Printer({"x": "b_a_rather_long_name"}).statements("b_o", sigmoid(X) ** exponent)
    assert all(len(line) <= LINE_WIDTH for line in lines)
    got = run(lines, "b_o", b_a_rather_long_name=np.float64(2.5))
    np.testing.assert_allclose(got, (1 + np.exp(-2.5)) ** -exponent, rtol=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e-300, 1e22, -0.0, 1 / 3, float("inf"), float("-inf")])
def test_a_number_reads_back_as_itself(value):
    assert eval(number(value)) == value  # noqa: S307


def test_the_printer_remembers_the_helpers_that_the_text_calls():
    printer = Printer(BINDINGS)
    printer.text(sympy.tanh(X) + softplus(Y))
    assert printer.helpers == {"tanh", "softplus"}


def test_a_split_statement_needs_every_helper_of_its_parts():
    printer = Printer({"x": "b_" + "x" * 40, "y": "b_" + "y" * 40})
    lines = printer.statements("b_o", sympy.tanh(X) * sigmoid(Y) + softplus(X - Y) * log1p(X + Y))
    assert len(lines) > 1
    assert printer.helpers == {"tanh", "sigmoid", "softplus", "log1p"}
