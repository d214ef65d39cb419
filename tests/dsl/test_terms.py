"""Sums of terms as they are declared: in TOML, inline or not, and in Python."""

from __future__ import annotations

import pickle

import pytest

from attnc import Param, Sum, Term, causal, h, i, j, s, sigmoid, window
from attnc.dsl import dumps, loads
from attnc.errors import FieldError

INLINE = """
[windowed]
normalize = "sum"
params.mix = { shape = ["h"], grad = true }
terms = [
  { feature_map = "softmax", mask = "causal & window(63)", scale = "rsqrt(d)", factor = "sigmoid(mix[h])" },
  { feature_map = "taylor(2)", mask = "i - j >= 64", scale = "rsqrt(d)" },
]
"""  # noqa: E501
TABLES = """
[windowed]
params.mix = { shape = ["h"], grad = true }

[[windowed.terms]]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "window(63) & causal"
factor = "sigmoid(mix[h])"

[[windowed.terms]]
scale = "rsqrt(d)"
mask = "~(i - j < 64)"
feature_map = "1 + s + s**2/2"
"""


def windowed() -> Sum:
    mix = Param("mix", shape="h", grad=True)
    near = Term("softmax", "rsqrt(d)", mask=causal & window(63), factor=sigmoid(mix[h]))
    return Sum("windowed", terms=[near, Term("taylor(2)", "rsqrt(d)", mask=i - j >= 64)])


def test_a_sum_is_the_same_however_it_is_written():
    assert loads(INLINE)["windowed"] == loads(TABLES)["windowed"] == windowed()


def test_a_sum_survives_toml_and_pickle():
    for variant in (windowed(), *loads(TABLES).values()):
        assert loads(dumps(variant))[variant.name] == variant
        assert pickle.loads(pickle.dumps(variant)) == variant


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"1 + s + s**2/2"', '"taylor(4)"'),
        ("window(63)", "window(31)"),
        ("i - j < 64", "i - j < 65"),
        ('"sigmoid(mix[h])"', '"exp(mix[h])"'),
        ('"rsqrt(d)"', "0.5"),
        ("[windowed]", "[windowed]\nvalue = '2*v'"),
        ("[windowed]", "[windowed]\nsink = 1.0"),
        ("grad = true", "grad = false"),
    ],
)
def test_all_of_a_term_is_part_of_the_meaning(old, new):
    changed = loads(TABLES.replace(old, new))["windowed"]
    assert changed.digest != windowed().digest


def test_a_sum_sees_what_any_of_its_terms_sees():
    form = windowed().mask_form
    for row, column, seen in ((70, 70, True), (70, 7, True), (70, 6, True), (70, 71, False)):
        assert form.visible(row, column) is seen


def test_the_summary_names_every_term():
    assert windowed().summary == (
        "term (softmax, scale rsqrt(d), mask causal & window(63), factor sigmoid(mix[h])), "
        "term (taylor(2), scale rsqrt(d), mask i - j >= 64), normalize sum"
    )


def test_a_tensor_that_no_term_reads_is_warned_of():
    text = TABLES.replace("params.mix", "params.odd = { shape = [] }\nparams.mix")
    assert loads(text)["windowed"].warnings() == ("windowed: param 'odd' is declared and not used",)


def test_a_term_that_sees_nothing_is_warned_of():
    variant = loads(TABLES.replace('"~(i - j < 64)"', '"~full"'))["windowed"]
    assert variant.warnings() == ("term 2 of windowed: the mask hides every key",)


def test_a_python_term_with_an_unknown_key_is_refused():
    with pytest.raises(FieldError) as caught:
        Sum("bad", terms=[{"feature_map": "softmax", "scale": 1.0, "scor": s}, windowed()])
    assert str(caught.value) == (
        "error[A101]: term 1 of bad has an unknown key 'scor'\n"
        "  note: keys of a term are feature_map, scale, score, mask, factor\n"
        "  hint: did you mean 'score'?"
    )


def test_terms_keep_their_order():
    assert [term.family for term in windowed().terms] == ["softmax", "state"]
