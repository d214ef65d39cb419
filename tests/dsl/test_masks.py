"""Masks against brute force: the normal form shows the same pairs as a naive evaluator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.dsl import causal, eq, full, i, j, prefix, window
from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Number
from attnc.dsl.half_plane import HalfPlane, MaskProblem
from attnc.dsl.mask import CAUSAL, FULL, MAX_CLAUSES, MaskForm, mask_form
from attnc.dsl.proof import is_causal, within_causal
from attnc.errors import LimitExceeded, MaskNotAffine

# rows before 0 exist where there are more queries than keys
GRID = [(row, column) for row in range(-6, 24) for column in range(24)]
ARITHMETIC: dict[str, Callable[..., Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
COMPARISONS: dict[str, Callable[..., bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def number(expr: Expr, row: int, column: int) -> Fraction:
    match expr:
        case Number(value=value):
            return value
        case Name(id=name):
            return Fraction({"i": row, "j": column}[name])
        case Negate(operand=operand):
            return -number(operand, row, column)
        case Binary(op=op, left=left, right=right):
            return ARITHMETIC[op](number(left, row, column), number(right, row, column))
    raise AssertionError(expr)


def shows(expr: Expr, row: int, column: int) -> bool:
    """Whether a pair is visible, by the definitions and nothing else."""
    match expr:
        case Name(id="full"):
            return True
        case Name(id="causal"):
            return column <= row
        case Call(function="window", args=args):
            bounds = [number(arg, row, column) for arg in args]
            right = len(bounds) < 2 or column <= row + bounds[1]
            return row - bounds[0] <= column and right
        case Call(function="prefix", args=(n,)):
            return column < number(n, row, column)
        case Compare(op=op, left=left, right=right):
            return COMPARISONS[op](number(left, row, column), number(right, row, column))
        case Logic(op="~", operands=(operand,)):
            return not shows(operand, row, column)
        case Logic(op="&", operands=operands):
            return all(shows(operand, row, column) for operand in operands)
        case Logic(op="|", operands=operands):
            return any(shows(operand, row, column) for operand in operands)
    raise AssertionError(expr)


coefficients = st.sampled_from([Fraction(n, m) for n in range(-3, 4) for m in (1, 2, 3)])
affine = st.builds(
    lambda a, b, c: a * i + b * j + c,
    coefficients,
    coefficients,
    st.fractions(-12, 12, max_denominator=3),
)
leaves = st.one_of(
    st.sampled_from([causal, full]),
    st.integers(0, 12).map(window),
    st.builds(window, st.integers(0, 12), st.integers(0, 12)),
    st.integers(0, 20).map(prefix),
    st.builds(Compare, st.sampled_from(list(COMPARISONS)), affine, affine),
)
masks = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.builds(operator.and_, parts, parts),
        st.builds(operator.or_, parts, parts),
        parts.map(operator.invert),
    ),
    max_leaves=5,
)


@given(masks)
def test_the_normal_form_shows_exactly_the_pairs_of_the_mask(mask):
    form = mask_form(mask)
    wrong = [pair for pair in GRID if form.visible(*pair) != shows(mask, *pair)]
    assert wrong == []


@given(masks)
def test_a_mask_proved_within_causal_shows_no_key_after_its_query(mask):
    form = mask_form(mask)
    if within_causal(form):
        assert all(column <= row for row, column in GRID if form.visible(row, column))
    assert within_causal(mask_form(causal & mask))


@given(masks)
def test_the_normal_form_is_free_of_order_doubling_and_double_complement(mask):
    form = mask_form(mask)
    assert mask_form(mask & mask) == form
    assert mask_form(mask | mask) == form
    assert mask_form(~~mask) == mask_form(~(~mask)) == form
    assert mask_form(full & mask) == mask_form(mask & full) == form


@given(masks, masks)
def test_and_and_or_do_not_depend_on_order(first, second):
    assert mask_form(first & second) == mask_form(second & first)
    assert mask_form(first | second) == mask_form(second | first)


@pytest.mark.parametrize(
    "mask",
    [
        causal,
        j <= i,
        i >= j,
        ~(j > i),
        j < i + 1,
        2 * j <= 2 * i + 1,
        j / 2 - i / 2 <= 0,
        i - j >= 0,
        causal & full,
        causal & causal,
        causal | (j <= i - 3),
        causal & (j <= i + 5),
    ],
)
def test_every_way_to_write_causal_is_causal(mask):
    assert mask_form(mask) == CAUSAL
    assert is_causal(mask_form(mask))


@pytest.mark.parametrize(
    ("mask", "planes"),
    [
        (window(4), ((-1, 1, 4),)),
        (window(4, 2), ((-1, 1, 4), (1, -1, 2))),
        (prefix(3), ((0, -1, 2),)),
        (i - j < 64, ((-1, 1, 63),)),
        (2 * i >= j * 4 + 3, ((1, -2, -2),)),
        (i / 2 < j / 3, ((-3, 2, -1),)),
        (eq(i, j), ((-1, 1, 0), (1, -1, 0))),
    ],
)
def test_one_clause_holds_these_half_planes(mask, planes):
    assert mask_form(mask) == MaskForm((tuple(HalfPlane(*plane) for plane in planes),))


def test_full_is_one_empty_clause_and_its_complement_none():
    assert mask_form(full) == FULL == MaskForm(((),))
    assert mask_form(~full) == MaskForm(())
    assert mask_form((i < j) & (j < i)) == MaskForm(())


@pytest.mark.parametrize(
    ("mask", "proved"),
    [
        (causal, True),
        (causal & window(7), True),
        (j < i, True),
        (i >= 2 * j, True),
        ((i + j >= 0) & (i >= 3 * j), True),
        (causal | (j <= i - 4), True),
        (~full, True),
        (full, False),
        (window(7), False),
        (prefix(3), False),
        (causal | prefix(1), False),
        (j <= i + 1, False),
    ],
)
def test_within_causal_is_proved_for_these_and_no_others(mask, proved):
    assert within_causal(mask_form(mask)) is proved


def test_a_form_prints_as_the_half_planes_it_is():
    assert str(mask_form(causal & window(7) | prefix(2))) == (
        "(-i + j >= -7 and i - j >= 0) or (-j >= -1)"
    )
    assert str(mask_form(full)) == "everything"
    assert str(mask_form(~full)) == "nothing"


@pytest.mark.parametrize("mask", [i * j < 4, j / i < 2, Name("h") < 3, 2**j < i, i**2 < j])
def test_a_term_that_is_not_affine_is_named(mask):
    with pytest.raises(MaskProblem, match="is not affine in i and j") as caught:
        mask_form(mask)
    assert caught.value.error is MaskNotAffine


def test_more_clauses_than_the_limit_are_refused():
    stripes = eq(i, 0)
    for row in range(1, MAX_CLAUSES):
        stripes = stripes | eq(i, row)
    assert len(mask_form(stripes).clauses) == MAX_CLAUSES
    with pytest.raises(MaskProblem, match="more than 16 clauses") as caught:
        mask_form(stripes | eq(i, MAX_CLAUSES))
    assert caught.value.error is LimitExceeded
