"""Polynomials that are nowhere negative: decided exactly, held against sympy's real roots."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from attnc.dsl.sign import may_round_below_zero, nowhere_negative

S = sympy.Symbol("s")
ROOTS = st.fractions(-3, 3, max_denominator=4)
# a quadratic without real roots: (s - a)**2 + b
COMPLEX = st.tuples(ROOTS, st.fractions(Fraction(1, 8), 2, max_denominator=8))


def parts_of(expression):
    poly = sympy.Poly(sympy.expand(expression), S)
    return tuple(Fraction(int(c.p), int(c.q)) for c in reversed(poly.all_coeffs()))


def exact(number):
    return sympy.Rational(number.numerator, number.denominator)


@given(st.lists(ROOTS, max_size=6), st.lists(COMPLEX, max_size=2), st.sampled_from((1, -2)))
def test_a_polynomial_of_known_roots_changes_sign_at_those_of_odd_multiplicity(roots, pairs, lead):
    product = sympy.Integer(lead)
    for root in roots:
        product *= S - exact(root)
    for middle, above in pairs:
        product *= (S - exact(middle)) ** 2 + exact(above)
    even = all(roots.count(root) % 2 == 0 for root in roots)
    assert nowhere_negative(parts_of(product)) == (lead > 0 and even)


@given(st.lists(st.fractions(-2, 2, max_denominator=6), min_size=1, max_size=9))
def test_any_polynomial_is_judged_as_by_its_least_value(parts):
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    poly = sympy.Poly([exact(part) for part in reversed(parts)], S)
    stationary = [r.evalf(60) for r in set(sympy.real_roots(poly.diff()))] if poly.diff() else []
    bounded = (len(parts) % 2 and parts[-1] > 0) or len(parts) == 1
    least = min(poly.eval(x) for x in [*stationary, sympy.Integer(0)])
    # where a root is stationary its value is 0 up to the digits taken
    assert nowhere_negative(tuple(parts)) == bool(bounded and least > -sympy.Float("1e-40"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", True), ("3", True), ("-3", False), ("s", False), ("s**8", True), ("-s**2", False),
     ("(s**2 - 2)**2", True), ("(s**2 - 2)**3", False), ("s**4 - 2*s**2 + 1.0001", True)],
)  # fmt: skip
def test_the_sign_of(text, expected):
    assert nowhere_negative(parts_of(sympy.nsimplify(text, rational=True))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("(1 + s)**2", True), ("s**2", False), ("s**2*(s - 2)**4", True), ("(s**2 - 3)**4", True),
     ("s**4 + s**2", False), ("(s**2 + 1)**2", False), ("1 + s + s**2/2", False),
     ("(s - 2)**2*(s**2 + s + 1)", True), ("(s - 1)**4 + 1e-12", True),
     ("(s - 1)**2 + 1e-9", True), ("(s - 1)**2 + 0.001", False), ("(s + 1)**2 + 1e-9", True)],
)  # fmt: skip
def test_where_it_is_about_0_elsewhere_than_at_0_rounding_may_take_it_below(text, expected):
    assert may_round_below_zero(parts_of(sympy.nsimplify(text, rational=True))) == expected
