"""What a declaration means: its family, and each form with the reason for or against it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from attnc.codegen.algebra import FORMS, analyse
from attnc.dsl.variant import Variant
from attnc.ops.shipped import shipped
from tests.codegen.emitted import DRAWN


def state(**facts) -> Variant:
    usual = {"feature_map": "identity", "scale": 1.0, "mask": "causal", "normalize": "none"}
    return Variant("drawn", **{**usual, **facts})


def test_softmax_has_the_online_form_alone_and_says_why():
    algebra = analyse(shipped()["flash"])
    assert algebra.family == "softmax"
    no_state = "exp(score) is no finite polynomial in s, so no state of fixed size holds it"
    assert [(v.form, v.legal, v.reason) for v in algebra.forms] == [
        ("online", True, "exp(score) folds as (maximum, sum, accumulator)"),
        ("parallel", False, "the online form is the softmax family's own"),
        ("chunked", False, no_state),
        ("recurrent", False, no_state),
    ]


@pytest.mark.parametrize("name", ["based", "lightning", "linear", "retnet"])
def test_a_causal_state_has_all_forms_but_online(name):
    algebra = analyse(shipped()[name])
    assert algebra.family == "state"
    assert {form: algebra.legal(form).legal for form in FORMS} == {
        "online": False, "parallel": True, "chunked": True, "recurrent": True,
    }  # fmt: skip


def test_a_full_mask_has_a_sum_for_the_chunked_form_and_nothing_to_hand_on():
    algebra = analyse(state(mask="~(i < 0)"))
    assert [v.form for v in algebra.forms if v.legal] == ["parallel"] and not algebra.global_sum
    algebra = analyse(state(mask="full"))
    assert [v.form for v in algebra.forms if v.legal] == ["parallel", "chunked"]
    assert algebra.global_sum and not algebra.keeps_state.legal


@pytest.mark.parametrize("mask", ["causal & window(5)", "i - j > 0", "causal | prefix(3)"])
def test_a_state_of_another_mask_has_the_parallel_form_alone(mask):
    algebra = analyse(state(mask=mask))
    assert [v.form for v in algebra.forms if v.legal] == ["parallel"]
    assert algebra.legal("chunked").reason == (
        "the mask is not exactly causal, and a fold over tokens sees just j <= i"
    )


@pytest.mark.parametrize("mask", ["window(0, 0) | causal", "~(j > i)", "i - j >= 0", "j < i + 1"])
def test_a_mask_that_means_causal_is_causal_however_it_is_written(mask):
    assert analyse(state(mask=mask)).legal("chunked").legal


@pytest.mark.parametrize(
    ("feature_map", "coefficients"),
    [
        ("taylor(2)", (1, 1, Fraction(1, 2))),
        ("identity", (0, 1)),
        ("1 + s + s**2/2", (1, 1, Fraction(1, 2))),
        ("(1 + s)**2 - 1", (0, 2, 1)),
        ("elu(x) + 1", (0, 1)),
    ],
)
def test_a_weight_is_a_polynomial_with_exact_coefficients(feature_map, coefficients):
    assert analyse(state(feature_map=feature_map)).coefficients == coefficients


def test_features_are_direct_just_where_the_weight_is_a_multiple_of_s():
    direct = {m: analyse(state(feature_map=m)).direct for m in ("identity", "3*s", "elu(x) + 1")}
    assert direct == {"identity": True, "3*s": True, "elu(x) + 1": True}
    assert not analyse(state(feature_map="1 + s")).direct
    assert not analyse(state(feature_map="s**2")).direct


def test_a_decay_is_constant_or_gated_and_may_depend_on_the_head():
    kinds = {
        name: (analyse(variant).decay, analyse(variant).heads_differ)
        for name, variant in {
            "none": state(),
            "number": state(log_decay="-0.1"),
            "lightning": shipped()["lightning"],
            "retnet": shipped()["retnet"],
            "gated": DRAWN["gated"],
            "gla": DRAWN["gla"],
            "shared": state(log_decay="-g[b,t]", inputs={"g": {"shape": ["b", "t"]}}),
        }.items()
    }
    assert kinds == {
        "none": (None, False), "number": ("constant", False), "lightning": ("constant", True),
        "retnet": ("constant", True), "gated": ("gated", True), "gla": ("channel", True),
        "shared": ("gated", False),
    }  # fmt: skip


def test_an_algebra_prints_as_a_table_of_facts():
    assert str(analyse(shipped()["based"])) == "\n".join(
        [
            "family     state",
            "weight     s**2/2 + s + 1",
            "mask       (i - j >= 0)",
            "normalize  sum",
            "online     no: the weight is not exp(score)",
            "parallel   legal: any mask, one tile of weights at a time",
            "chunked    legal: the weight is a polynomial in s: S = decay * S + phi(k)^T v",
            "recurrent  legal: the weight is a polynomial in s: S = decay * S + phi(k)^T v",
        ]
    )
