"""How many features a state keeps, how they are cut into tiles, and what the tables weigh."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.algebra import analyse
from attnc.codegen.features import features_of
from attnc.dsl.variant import Variant
from attnc.ops.op import compile as compile_op


def of(feature_map: str, head_dim: int, **facts):
    variant = Variant(
        "drawn", feature_map=feature_map, scale=0.5, mask="causal", normalize="none"
    )  # fmt: skip
    return features_of(analyse(variant), head_dim, **facts)


def test_order_two_of_sixteen_channels_is_153_columns_in_tiles_of_128_and_32():
    """136 + 16 + 1; one tile of 256 would waste 103 columns of every product."""
    features = of("taylor(2)", 16)
    assert features.count == 153
    assert [count for _, _, count in features.degrees] == [136, 16, 1]
    assert [(tile.start, tile.width, tile.count) for tile in features.tiles] == [
        (0, 128, 128),
        (128, 32, 25),
    ]
    assert features.padded_count == 160
    assert features.order == 2


@pytest.mark.parametrize(
    ("feature_map", "head_dim", "count"),
    [
        ("taylor(3)", 16, 816 + 136 + 16 + 1),
        ("taylor(2)", 80, 3240 + 80 + 1),
        ("s**2", 16, 136),
        ("s**2 + 1", 16, 137),
        ("s - s**3", 16, 816 + 16),
        ("identity", 80, 80),
        ("1 + s", 64, 65),
    ],
)
def test_a_degree_without_a_coefficient_has_no_features(feature_map, head_dim, count):
    assert of(feature_map, head_dim).count == count


def test_features_of_phi_are_its_channels_in_one_padded_tile():
    features = of("elu(x) + 1", 80)
    assert features.direct
    (tile,) = features.tiles
    assert (tile.width, tile.count, tile.padded) == (128, 80, True)


@settings(max_examples=60, deadline=None)
@given(
    feature_map=st.sampled_from(["taylor(2)", "taylor(3)", "s**2 + 1", "1 + s"]),
    head_dim=st.integers(16, 40),
    narrowest=st.sampled_from([16, 64]),
)
def test_tiles_cover_every_feature_once_in_powers_of_two(feature_map, head_dim, narrowest):
    features = of(feature_map, head_dim, narrowest=narrowest)
    assert features.count == sum(
        comb(head_dim + degree - 1, degree) for degree, _, _ in features.degrees
    )
    start = 0
    for tile in features.tiles:
        assert tile.start == start
        assert 0 < tile.count <= tile.width <= 128
        assert tile.width >= narrowest
        assert tile.width & (tile.width - 1) == 0
        start += tile.count
    assert start == features.count
    # no column of a tile but the last is padding
    assert all(tile.count == tile.width for tile in features.tiles[:-1])


@pytest.mark.parametrize(
    ("feature_map", "weight"),
    [
        ("taylor(2)", lambda s: 1 + s + s**2 / 2),
        ("0.25 + s**2", lambda s: 0.25 + s**2),
        ("3*s**2 - 2*s", lambda s: 3 * s**2 - 2 * s),
    ],
)
def test_the_emitted_tables_make_the_weight_of_a_pair(feature_map, weight):
    """phi(q).phi(k) over the table's monomials, with their weights, is the polynomial of q.k."""
    variant = Variant(
        "drawn", feature_map=feature_map, scale=0.5, mask="causal", normalize="none"
    )  # fmt: skip
    head_dim = 16
    scope: dict[str, object] = {}
    text = compile_op(variant).source(dim=(head_dim, 64), form="chunked", dtype="fp32")
    tables = text[text.index("_TABLES:") : text.index("\ndef forward")]
    exec("import torch\n" + tables, scope)
    index, weights = (table.double().numpy() for table in scope["feature_tables"]("cpu"))
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, head_dim)) / 2

    def monomials(x):
        picked = np.where(index >= 0, x[np.maximum(index, 0).astype(int)], 1.0)
        return picked.prod(0)

    total = (weights * monomials(q) * monomials(k)).sum()
    assert total == pytest.approx(weight(0.5 * q @ k), rel=1e-6)
