"""Whether a polynomial is nowhere negative, decided exactly: only odd roots change its sign."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from attnc.dsl.polynomial import Coefficients

# more than 8 products and sums in fp32 lose of the sum of all terms without their signs
_LOST = Fraction(1, 2**18)


def nowhere_negative(parts: Coefficients) -> bool:
    """Whether the polynomial is at least 0 for every real number; the constant comes first.

    Roots of multiplicity one are counted and their factors divided out, then each other root twice:
    what is left has the same sign, and those roots two times less.
    """
    if parts[-1] < 0:
        return False
    while len(parts) > 1:
        repeated = _gcd(parts, _derivative(parts))
        each_once = _divide(parts, repeated)[0]
        twice_or_more = _gcd(each_once, repeated)
        single = _divide(each_once, twice_or_more)[0]
        if _real_roots(single):
            return False
        for factor in (single, twice_or_more, twice_or_more):
            parts = _divide(parts, factor)[0]
    return True


def may_round_below_zero(parts: Coefficients) -> bool:
    """Whether fp32 may take a polynomial that is nowhere negative below 0.

    It touches 0, somewhere else than at 0, or comes closer to it than what its terms lose.
    """
    for side in (1, -1):
        # at s = side * t**2, so that one half of the line is all of it
        least = [part * side**m - _LOST * abs(part) for m, part in enumerate(parts)]
        spread = [Fraction(0)] * (2 * len(parts) - 1)
        spread[::2] = least
        if not nowhere_negative(tuple(spread)):
            return True
    return False


def _real_roots(parts: Coefficients) -> int:
    """How many real roots a polynomial without repeated ones has.

    Source: Sturm's theorem, the sign changes of its chain at either end of the line.
    """
    chain = [parts, _derivative(parts)]
    while any(chain[-1]):
        rest = _divide(chain[-2], chain[-1])[1]
        chain.append(tuple(-part for part in rest))
    chain.pop()
    at_right = [part[-1] > 0 for part in chain]
    at_left = [(part[-1] > 0) == (len(part) % 2 == 1) for part in chain]
    return _changes(at_left) - _changes(at_right)


def _changes(signs: list[bool]) -> int:
    return sum(a != b for a, b in pairwise(signs))


def _derivative(parts: Coefficients) -> Coefficients:
    return tuple(m * part for m, part in enumerate(parts))[1:] or (Fraction(0),)


def _gcd(a: Coefficients, b: Coefficients) -> Coefficients:
    """The greatest common divisor, its leading coefficient 1."""
    while any(b):
        a, b = b, _divide(a, b)[1]
    return tuple(part / a[-1] for part in a)


def _divide(a: Coefficients, b: Coefficients) -> tuple[Coefficients, Coefficients]:
    """Quotient and remainder, the remainder without zeros at its end."""
    rest, quotient = list(a), [Fraction(0)] * max(1, len(a) - len(b) + 1)
    for m in range(len(a) - len(b), -1, -1):
        quotient[m] = rest[m + len(b) - 1] / b[-1]
        for n, part in enumerate(b):
            rest[m + n] -= quotient[m] * part
    kept = rest[: len(b) - 1]
    while len(kept) > 1 and kept[-1] == 0:
        kept.pop()
    return tuple(quotient), tuple(kept) or (Fraction(0),)
