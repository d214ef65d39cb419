"""The features a state keeps: channels of phi(k), or symmetric monomials of k, cut into tiles.

A polynomial weight c_0 + c_1 s + ... of s = scale * q.k is phi_q(q).phi_k(k) with one feature a
monomial k^alpha, |alpha| = m; the query side carries c_m * scale^m * m!/alpha!.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import comb

from attnc.codegen.algebra import Algebra

MIN_TILE = 16


@dataclass(frozen=True, slots=True)
class FeatureTile:
    """`width` columns of features from `start`: `count` are real, of at most `order` factors.

    `padded` says that some column has fewer factors than `order`, or is no feature at all.
    """

    start: int
    width: int
    count: int
    order: int
    padded: bool


@dataclass(frozen=True)
class Features:
    """All features of one variant at one head dim.

    `degrees` lists (degree, coefficient, count), descending; `tiles` cover `padded_count` columns,
    each of `narrowest` to `widest`, and are cut when first read: a polynomial of a high degree has
    more of them than any program, or list, could hold.
    """

    direct: bool
    count: int
    degrees: tuple[tuple[int, Fraction, int], ...]
    narrowest: int
    widest: int

    @cached_property
    def tiles(self) -> tuple[FeatureTile, ...]:
        """The features by columns, the widest tile first."""
        if not self.direct:
            return _cut(self.count, self.degrees, self.narrowest, self.widest)
        width = max(self.narrowest, power_of_two(self.count))
        return (FeatureTile(0, width, self.count, 1, width != self.count),)

    @property
    def padded_count(self) -> int:
        """Columns with the padding that whole tiles need."""
        return sum(tile.width for tile in self.tiles)

    @property
    def order(self) -> int:
        """The most factors a feature has."""
        return max((degree for degree, _, _ in self.degrees), default=0)


def features_of(
    algebra: Algebra,
    head_dim: int,
    *,
    narrowest: int = MIN_TILE,
    widest: int = 128,
    channels: int = MIN_TILE,
) -> Features:
    """Count the features and cut them into tiles of powers of two, the widest first.

    `channels` is the narrowest tile where the features are the channels of phi(k) themselves.
    """
    if algebra.direct:
        degrees: tuple[tuple[int, Fraction, int], ...] = ((1, algebra.coefficients[1], head_dim),)
        return Features(True, head_dim, degrees, channels, widest)
    degrees = tuple(
        (degree, algebra.coefficients[degree], comb(head_dim + degree - 1, degree))
        for degree in range(algebra.degree, -1, -1)
        if algebra.coefficients[degree] != 0
    )
    count = sum(columns for _, _, columns in degrees)
    return Features(False, count, degrees, narrowest, widest)


def power_of_two(size: int) -> int:
    """The least power of two that is not less than `size`."""
    return 1 << (size - 1).bit_length()


def _cut(
    count: int, degrees: tuple[tuple[int, Fraction, int], ...], narrowest: int, widest: int
) -> tuple[FeatureTile, ...]:
    tiles: list[FeatureTile] = []
    start = 0
    while start < count:
        left = count - start
        width = min(widest, max(narrowest, power_of_two(left)))
        # 153 columns are 128 + 32, not 256: take the largest tile that is full, then the rest
        if width > left and width // 2 >= narrowest and left - width // 2 > 0:
            rest = max(narrowest, power_of_two(left - width // 2))
            if width // 2 + rest < width:
                width //= 2
        real = min(width, left)
        order = _degree_at(start, degrees)
        last = _degree_at(start + real - 1, degrees)
        tiles.append(FeatureTile(start, width, real, order, last < order or real < width))
        start += real
    return tuple(tiles)


def _degree_at(column: int, degrees: tuple[tuple[int, Fraction, int], ...]) -> int:
    for degree, _, columns in degrees:
        if column < columns:
            return degree
        column -= columns
    raise AssertionError(f"column {column} is beyond the features")
