"""Feature maps: exact coefficients, and weights that are provably nonnegative."""

from __future__ import annotations

from fractions import Fraction as F

import pytest

from attnc.dsl import Variant, causal, elu, loads, s, x
from attnc.dsl.feature import nonnegative
from attnc.errors import LimitExceeded


def feature(text: str, scale: str = "1.0", normalize: str = "none") -> Variant:
    body = f'feature_map = "{text}"\nscale = {scale}\nnormalize = "{normalize}"\n'
    return loads(f"[v]\n{body}")["v"]


@pytest.mark.parametrize(
    ("text", "coefficients"),
    [
        ("identity", (F(0), F(1))),
        ("s", (F(0), F(1))),
        ("taylor(1)", (F(1), F(1))),
        ("taylor(3)", (F(1), F(1), F(1, 2), F(1, 6))),
        ("1 + s + s**2/2", (F(1), F(1), F(1, 2))),
        ("(1 + s)**2", (F(1), F(2), F(1))),
        ("(s - 1)*(s + 1)", (F(-1), F(0), F(1))),
        ("s*(1 - s)/4 + 0.1", (F(1, 10), F(1, 4), F(-1, 4))),
        ("-(s - s**3)", (F(0), F(-1), F(0), F(1))),
        ("s**3 - s**3 + 2*s", (F(0), F(2))),
        ("s**8", (F(0),) * 8 + (F(1),)),
    ],
)
def test_a_polynomial_is_read_exactly(text, coefficients):
    found = feature(text).feature_map
    assert found.kind == "polynomial"
    assert found.coefficients == coefficients
    assert found.degree == len(coefficients) - 1


def test_a_feature_map_prints_as_text_that_means_the_same():
    for text in ("identity", "taylor(2)", "1 + 2*s + s**2", "-s/3 + s**3/7", "elu(x) + 1"):
        once = feature(text)
        assert feature(str(once.feature_map)).digest == once.digest


def test_feature_maps_are_the_same_in_python():
    def declared(value):
        return Variant("v", feature_map=value, scale=1, normalize="none")

    assert declared(1 + s + s**2 / 2) == feature("taylor(2)")
    assert declared(elu(x) + 1) == feature("elu(x) + 1")


def test_a_map_of_channels_has_the_weight_s():
    found = feature("relu(x)**2").feature_map
    assert found.kind == "map"
    assert found.coefficients == (F(0), F(1))


@pytest.mark.parametrize(
    "text",
    ["taylor(2)", "taylor(4)", "taylor(8)", "s**2", "1 + s**4/3", "1 + s + s**2", "(1 + s)**2",
     "1 + s + s**2/2 + s**3/8 + s**4/8", "(s - 2)**2*(s**2 + s + 1)", "(s**2 - 3)**4", "elu(x) + 1",
     "1 + elu(x)", "relu(x)**2", "exp(x)", "sigmoid(x)*softplus(x)", "abs(x)", "x**2"],
)  # fmt: skip
def test_these_weights_are_provably_nonnegative(text):
    assert nonnegative(feature(text).feature_map, 1)
    assert feature(text, normalize="sum").warnings() == ()


@pytest.mark.parametrize(
    "text", ["identity", "taylor(3)", "s**2 - 1", "s + s**2", "1 + 3*s + s**2", "-s**2", "silu(x)",
             "(s - 2)**3*(s + 1)", "s**4 - 2*s**2 + 0.999", "x", "elu(x)", "tanh(x) + 0.5"],
)  # fmt: skip
def test_other_weights_warn_where_a_sum_divides(text):
    variant = feature(text, normalize="sum")
    assert variant.warnings() == (
        f"v: the weight {variant.feature_map} is not provably nonnegative, so a row sum may vanish "
        'or change sign under normalize = "sum"',
    )


@pytest.mark.parametrize(
    ("text", "constants"),
    [("s/sqrt(2)", ["sqrt(2)"]), ("(s + exp(1))**2 - log(3)", ["exp(1)", "log(3)"]),
     ("sigmoid(s)", []), ("s**sqrt(4)", []), ("sqrt(2)*tanh(s)", [])],
)  # fmt: skip
def test_a_weight_that_a_constant_alone_keeps_from_a_state_is_told(text, constants):
    found = feature(text, normalize="none")
    assert found.family == "pointwise"
    assert found.warnings() == tuple(
        f"v: the weight {found.feature_map} folds into a state where {constant} is written as a "
        "number"
        for constant in constants
    )


@pytest.mark.parametrize("text", ["s**16*exp(-s)", "1/(1 + s**10)", "(s**12 + 1)**-2", "abs(s**9)"])
def test_a_high_power_inside_of_what_is_no_polynomial_is_no_degree(text):
    assert feature(text).family == "pointwise"


@pytest.mark.parametrize("text", ["s**9", "(1 + s**3)**4/2", "s - s**16/3**2"])
def test_a_polynomial_of_a_high_degree_is_refused(text):
    with pytest.raises(LimitExceeded, match="the weight has degree"):
        feature(text)


def test_a_negative_scale_turns_a_mapped_weight_negative():
    assert feature("exp(x)", scale="-1.0", normalize="sum").warnings() != ()
    assert feature("taylor(2)", scale="-1.0", normalize="sum").warnings() == ()


def test_an_unused_tensor_and_an_empty_mask_warn():
    variant = loads(
        '[v]\nfeature_map = "softmax"\nscale = 1.0\nmask = "~full"\nparams.a = { shape = ["h"] }'
    )["v"]
    assert variant.warnings() == (
        "v: param 'a' is declared and not used",
        "v: the mask hides every key",
    )


def test_the_family_follows_from_the_weight():
    assert Variant("v", feature_map="softmax", scale=1, mask=causal).family == "softmax"
    assert feature("taylor(2)").family == "state"
    assert feature("sigmoid(s)").family == "pointwise"


def test_the_scale_is_a_number_or_follows_the_head_dim():
    softmax = Variant("v", feature_map="softmax", scale="rsqrt(d)")
    assert softmax.scale.value(64) == 0.125
    assert Variant("v", feature_map="softmax", scale=0.1).scale.value(64) == 0.1
    assert str(softmax.scale) == "rsqrt(d)"
