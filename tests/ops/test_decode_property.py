"""Drawn declarations that decode: prefills and steps from each kind of state are the formula."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from attnc.errors import PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.verification.conditioning import allowance
from attnc.ops.verification.decoding import decode_rows, decodes
from tests import sums
from tests.drawn_calls import Call, calls
from tests.strategies import channel_declarations, declarations

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def over_caches(draw: st.DrawFn) -> str:
    """A weight that no state holds, whose mask shows no later key, and whose v is as it comes."""
    text = draw(declarations(draw(st.sampled_from(["softmax", "softmax", "pointwise"]))))
    text = re.sub(r"^value = .*\n", "", text, flags=re.M)
    return re.sub(r'^mask = "(.*)"', r'mask = "causal & (\1)"', text, flags=re.M)


def held(call: Call) -> None:
    """Every row of every kind of state that the variant has."""
    assume(decodes(call.shape))
    op = compile_op(call.variant)
    dtype, lse = call.inputs.q.dtype, call.variant.has_lse
    given = (call.variant, *call.inputs.qkv, call.inputs.tensors)
    ref = attend(*given, return_lse=lse)
    pt = attend(*given, dtype=ref.out.float().dtype, rounding=dtype, return_lse=lse)
    try:
        rows = list(
            decode_rows(
                op, call.inputs, call.shape, call.dtype, (ref, pt),
                allowed=allowance(*given), rounded=pt.lse,
            )
        )  # fmt: skip
    except PlanError:
        assume(False)  # a state that no tile holds
    assume(rows)
    for row in rows:
        assert row.error <= row.bound, str(row)


@pytest.mark.timeout(300)
@SETTINGS
@given(calls(square=True, tokens=40, declared=over_caches()))
def test_what_no_state_holds_decodes_over_its_cache(call):
    held(call)


@pytest.mark.timeout(300)
@SETTINGS
@given(calls("state", causal=True, square=True, tokens=40))
def test_a_state_decodes_in_place(call):
    held(call)


@pytest.mark.timeout(300)
@settings(SETTINGS, max_examples=6)
@given(calls(square=True, tokens=40, declared=channel_declarations(causal=True)))
def test_a_state_that_decays_by_channels_decodes_in_place(call):
    held(call)


@pytest.mark.timeout(300)
@settings(SETTINGS, max_examples=8)
@given(sums.calls(tokens=40, folds=True))
def test_a_sum_decodes_over_a_cache_or_beside_a_state(call):
    held(call)
