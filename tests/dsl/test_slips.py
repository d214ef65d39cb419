"""Slips that would compute something else in silence, or hang: each is refused at once."""

from __future__ import annotations

import time

import pytest

from attnc.dsl import Dim, Heads, Param, Variant, h, loads, s
from attnc.errors import (
    AttncError,
    DecayRefused,
    FieldError,
    LimitExceeded,
    MaskNotAffine,
    SyntaxRefused,
    TomlError,
    UnknownName,
    Where,
)

SOFTMAX = '[v]\nfeature_map = "softmax"\nscale = 1.0\n'
STATE = '[v]\nfeature_map = "identity"\nscale = 1.0\nnormalize = "none"\nmask = "causal"\n'
TOWER = "(" * 7 + "9" + "**16)" * 7


def score(text: str) -> str:
    return f'{SOFTMAX}score = "{text}"\n'


def mask(text: str) -> str:
    return f'{SOFTMAX}mask = "{text}"\n'


def decay(text: str) -> str:
    return f'{STATE}log_decay = "{text}"\ninputs.g = {{ shape = ["b", "t", "h"] }}\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (score(f"s + {TOWER}"), LimitExceeded),
        (
            '[v]\nfeature_map = "s + ' + TOWER + '"\nscale = 1.0\nnormalize = "none"\n',
            LimitExceeded,
        ),
        ('[v]\nfeature_map = "(1e30*s)**8"\nscale = 1.0\nnormalize = "none"\n', LimitExceeded),
        (score("s*0x" + "f" * 500), SyntaxRefused),
        (score("s/(1 - 1)"), SyntaxRefused),
        (score("s # - slope[h]"), SyntaxRefused),
        (score("where(s, 1, 2)"), SyntaxRefused),
        (score("s + (i < j)"), SyntaxRefused),
        (score("exp(i < j)"), SyntaxRefused),
        (mask("(i < j) < 3"), SyntaxRefused),
        (mask("(i - j) % 2 == 0"), MaskNotAffine),
        (mask("window(i)"), MaskNotAffine),
        (mask("window(-1)"), MaskNotAffine),
        (mask("prefix(j)"), MaskNotAffine),
        (mask("prefix(2.5)"), MaskNotAffine),
        (mask("j < 1e12"), LimitExceeded),
        (mask("5000*i < j"), LimitExceeded),
        (decay("exp(g[t,h])"), DecayRefused),
        (decay("relu(g[t,h])"), DecayRefused),
        (decay("0.1*h"), DecayRefused),
        (decay("-t"), UnknownName),
        (decay("-d"), UnknownName),
        ('[v]\nfeature_map = "softmax"\nscale = ' + "9" * 5000, TomlError),
        (f"{SOFTMAX}{' ' * 200_000}\nscale2 = 1", FieldError),
        (f'{SOFTMAX}["a{" " * 100_000}b"]\nscale = 1.0', FieldError),
    ],
)
def test_a_slip_is_refused_within_two_seconds(text, error):
    start = time.process_time()
    with pytest.raises(error):
        for variant in loads(text).values():
            assert variant.digest
    assert time.process_time() - start < 2


def _sum(count: int, *, shared: bool):
    total = s
    for _ in range(count):
        total = total + (total if shared else 1)
    return total


@pytest.mark.parametrize("expression", [
    _sum(5000, shared=False), _sum(40, shared=True), s * 10**6000
])  # fmt: skip
def test_an_endless_expression_in_python_is_refused(expression):
    with pytest.raises(LimitExceeded):
        Variant("v", feature_map="softmax", scale=1, score=expression)


def test_a_shape_that_is_no_letters_is_refused():
    with pytest.raises(FieldError) as caught:
        Param("z", shape=3)
    assert caught.value.render() == (
        "error[A101]: the shape of 'z' is 3, not axis letters\n"
        '  hint: write shape="b,t,h"; a tensor that is one number has none'
    )


def test_two_tensors_of_one_name_are_refused():
    first, second = Param("z", shape="h"), Param("z", shape="h", grad=True)
    with pytest.raises(FieldError, match="declared twice"):
        Variant("v", feature_map="softmax", scale=1, score=s * first[h] + second[h])


@pytest.mark.parametrize(
    "facts", [{"dim": Dim(1000, 64)}, {"heads": Heads(8, 3)}, {"chunk": 10**5000}]
)
def test_facts_given_as_values_are_checked_too(facts):
    with pytest.raises(FieldError):
        Variant("v", feature_map="softmax", scale=1, **facts)


def test_the_order_of_a_feature_map_and_of_conditions_is_no_meaning():
    def digest(text: str) -> str:
        return loads(text)["v"].digest

    maps = [STATE.replace("identity", text) for text in ("1 + elu(x)", "elu(x) + 1")]
    assert digest(maps[0]) == digest(maps[1])
    left = score("where(((i < 3) & (j < 3)) & (h < 3), s, 0)")
    right = score("where((i < 3) & ((h < 3) & (j < 3)), s, 0)")
    assert digest(left) == digest(right)


def test_a_dotted_table_and_an_escaped_text_are_placed():
    with pytest.raises(UnknownName) as caught:
        loads('v.feature_map = "softmax"\nv.scale = 1.0\nv.score = "z"\n', file="my.toml")
    assert caught.value.where == Where('v.score = "z"', 12, 1, "my.toml", 3)
    with pytest.raises(UnknownName) as caught:
        loads(score("\\u0073 + z"), file="my.toml")
    assert caught.value.where == Where("s + z", 5, 1, label="score of 'v' (my.toml:4)")


def test_a_long_line_is_cut_near_the_caret():
    text = score("s + " * 40 + "z" + " + s" * 40)
    with pytest.raises(AttncError) as caught:
        loads(text, file="my.toml")
    lines = str(caught.value).split("\n")
    assert max(map(len, lines[:5])) < 112
    assert lines[3][lines[4].index("^")] == "z"
