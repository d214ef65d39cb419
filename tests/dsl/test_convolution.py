"""Convolutions as declarations: two spellings of one value, and what is refused."""

from __future__ import annotations

import pickle

import pytest

from attnc.dsl import Convolution, Input, Param, c, dumps, i, j, loads
from attnc.errors import DeclarationError
from tests.ops.convolutions import CONVOLUTIONS

HEAD = '[v]\nweight = "w[c, i-j]"\nparams.w = { shape = ["c", "T"] }\n'


def test_python_and_toml_build_the_same_value():
    w, skip = Param("w", shape="c,T", grad=True), Param("D", shape="c", grad=True)
    g = Input("g", shape="b,t,c")
    built = Convolution(
        "past", weight=w[c, i - j], mask=(i - j >= 2) & (i - j < 40), skip=skip[c],
        postgate=g["t", "c"],
    )  # fmt: skip
    assert built == CONVOLUTIONS["past"]
    assert pickle.loads(pickle.dumps(built)) == built


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_written_out_reads_back_equal(name):
    assert loads(dumps(CONVOLUTIONS[name]))[name] == CONVOLUTIONS[name]


def test_each_part_of_a_convolution_is_part_of_its_digest():
    digests = {variant.digest for variant in CONVOLUTIONS.values()}
    other = loads(HEAD + 'mask = "causal"\n')["v"]
    assert len(digests | {other.digest, loads(HEAD)["v"].digest}) == len(CONVOLUTIONS) + 2


def test_the_offsets_of_the_taps_follow_from_the_mask():
    found = {name: variant.filter.offsets(9) for name, variant in CONVOLUTIONS.items()}
    assert found == {
        "sparse": (0, 8),
        "gated": (0, 8),
        "both_sides": (-4, 4),
        "past": (2, 10),
        "around": (-5, 3),
    }
    assert CONVOLUTIONS["past"].filter.offsets(100) == (2, 39)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "scale = 1.0\n", "'v' has a weight and a scale"),
        (HEAD + 'postgates = "w[c]"\n', "'v' has an unknown key 'postgates'"),
        (HEAD + 'mask = "i + j < 5"\n', "the mask of 'v' is no range of i - j"),
        (HEAD + 'mask = "i - j < 5"\n', "the mask of 'v' is no range of i - j"),
        (HEAD + 'mask = "causal | (i - j < -3)"\n', "the mask of 'v' is no range of i - j"),
        (HEAD + 'skip = "w[c, i-j]"\n', "skip of 'v' is w[c, i-j], and has to be"),
        (HEAD + 'transforms = "smooth(7)"\n', "transforms of 'v' is 'smooth(7)', not a list"),
        (HEAD + 'transforms = ["sharpen(7)"]\n', "has 'sharpen(7)', which is no transform"),
        (HEAD + 'transforms = ["smooth(4)"]\n', "a width is an odd number of taps"),
        (HEAD + 'transforms = ["squash(1e999)"]\n', "a threshold is a finite number"),
        (HEAD + 'transforms = ["dropout(1)"]\n', "a probability of dropping is less than 1"),
        (HEAD.replace("w[c, i-j]", "w[c, j-i]"), "w[c, j - i] does not fit the shape [c, T]"),
        (HEAD.replace("w[c, i-j]", "2*w[c, i-j]"), "weight of 'v' is 2 * w[c, i-j], and has to"),
        (HEAD.replace('"c", "T"', '"h", "T"'), "'h' is no axis of 'w'"),
        ('[v]\nfeature_map = "softmax"\nscale = 1.0\nskip = "D[c]"\n', "has a skip and no weight"),
        (
            '[v]\nfeature_map = "softmax"\nscale = 1.0\nparams.w = { shape = ["T"] }\n',
            "'T' is no axis of 'w'",
        ),
    ],
)
def test_a_declaration_that_is_no_convolution_says_why(text, message):
    with pytest.raises(DeclarationError) as caught:
        loads(text, file="my.toml")
    assert message in str(caught.value)
