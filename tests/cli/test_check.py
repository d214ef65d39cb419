"""`attnc check`: what a declaration is, and what is wrong with one that is refused."""

from __future__ import annotations

import pytest

from attnc.cli.check import forms_of
from attnc.codegen.algebra import analyse
from attnc.dsl import Variant
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped

TWO = """
[cubic]
feature_map = "1 + s - s**3"
scale = 0.5
mask = "causal & window(37)"
normalize = "sum"

[capped]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 7)"
"""


def test_each_variant_of_a_file_is_checked_and_warnings_go_to_stderr(attnc, declare):
    done = attnc("check", declare(TWO))
    assert done.status == 0
    assert done.out == (
        "ok cubic: state family\n"
        "   feature_map 1 + s - s**3, scale 0.5, mask causal & window(37), normalize sum\n"
        "   forms: parallel (chunked and recurrent need a mask that is exactly causal)\n"
        "ok capped: softmax family\n"
        "   feature_map softmax, scale rsqrt(d), score softcap(s, 7), mask full, "
        "normalize softmax\n"
        "   forms: online\n"
    )
    assert done.err.startswith("warning: cubic: the weight 1 + s - s**3 is not provably")
    assert done.err.count("\n") == 1


def test_one_variant_of_a_file_is_named_after_a_colon(attnc, declare):
    done = attnc("check", declare(TWO) + ":capped")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("ok capped: softmax family\n")


def test_a_shipped_variant_is_checked_by_name(attnc):
    done = attnc("check", "lightning")
    assert done.status == 0
    assert "   forms: parallel, chunked, recurrent\n" in done.out


@pytest.mark.parametrize("variant", shipped().values(), ids=str)
def test_the_forms_it_names_are_those_of_the_algebra(variant):
    assert forms_of(variant) == compile_op(variant).forms()


def test_the_forms_of_a_state_behind_a_window_are_those_of_the_algebra():
    mask = "causal & window(3)"
    near = Variant("near", feature_map="identity", scale=1.0, mask=mask, normalize="none")
    legal = tuple(verdict.form for verdict in analyse(near).forms if verdict.legal)
    assert forms_of(near) == legal == ("parallel",)


def test_the_forms_of_a_filter_on_both_sides_are_named_without_a_reason_of_states(attnc, declare):
    done = attnc("check", declare('[c]\nweight = "w[c, i-j]"\nparams.w = { shape = ["c", "T"] }\n'))
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("   forms: toeplitz, fft, three_pass\n")


def test_a_refused_declaration_is_one_rendered_error_and_exits_2(attnc, declare):
    done = attnc(
        "check",
        declare('[mine]\nfeature_map = "softmax"\nscale = 1.0\nscore = "__import__(\'os\')"\n'),
    )
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "error[A104]: unknown function '__import__' in score of 'mine'\n"
        "  --> mine.toml:4:10\n"
        "   |\n"
        " 4 | score = \"__import__('os')\"\n"
        "   |          ^^^^^^^^^^\n"
        "  note: functions here: abs, elu, exp, log, log1p, max, min, relu, sigmoid, silu, "
        "softcap, softplus, sqrt, tanh, where\n"
    )


def test_a_tab_in_a_declaration_is_shown_as_one_column(attnc, declare):
    done = attnc("check", declare('[mine]\nfeature_map = "softmax"\n\tscale = "a\tb"\n'))
    assert done.status == 2
    assert ' 3 |  scale = "a b"\n' in done.err


def test_a_file_that_is_missing_exits_2(attnc, declare):
    declare("")
    done = attnc("check", "yours.toml")
    assert done.status == 2
    assert done.err == "error[A102]: cannot read yours.toml: No such file or directory\n"


def test_an_unknown_name_is_answered_with_what_was_meant(attnc):
    done = attnc("check", "lightening")
    assert done.status == 2
    assert done.err == (
        "error[A104]: unknown variant 'lightening'\n"
        f"  note: the shipped ones are {', '.join(shipped())}\n"
        "  hint: did you mean 'lightning'?\n"
    )


def test_an_unknown_name_of_a_file_is_answered_from_that_file(attnc, declare):
    done = attnc("check", declare(TWO) + ":cupped")
    assert done.status == 2
    assert done.err == (
        "error[A104]: mine.toml declares no variant 'cupped'\n"
        "  note: it declares cubic, capped\n"
        "  hint: did you mean 'capped'?\n"
    )
