"""Feature maps: softmax, a weight of s, polynomial or not, or a map of the channels of q and k."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import factorial

from attnc.dsl.decay import interval
from attnc.dsl.expr import (
    Binary,
    Call,
    Compare,
    Expr,
    Logic,
    Name,
    Negate,
    Number,
    is_condition,
    walk,
)
from attnc.dsl.grammar import FUNCTIONS
from attnc.dsl.limits import MAX_POWER_OF_TEN
from attnc.dsl.parse import parse
from attnc.dsl.polynomial import MAX_DEGREE, DegreeTooHigh, NotPolynomial, coefficients
from attnc.dsl.sign import nowhere_negative
from attnc.dsl.source import Scope, Source
from attnc.dsl.text import number_text, to_text
from attnc.errors import LimitExceeded, NoFamily

_X_FUNCTIONS = frozenset(FUNCTIONS) - {"window", "prefix", "documents", "blocks", "taylor"}
_EVERY_FUNCTION = _X_FUNCTIONS | {"taylor"}
_GRAMMAR = 'a feature map is "softmax", "identity", "taylor(p)", an expression in s, or one in x'


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """What the weight is: `softmax`, `polynomial` (of s), `map` (of channels x) or `pointwise`.

    Of a convolution it is `offset`, and `phi` the taps, read at i - j.

    `coefficients` are those of the weight in s, the constant first; (0, 1) for a map. `weight` is
    that of a pointwise map: any other expression in s, which is the score.
    """

    kind: str
    coefficients: tuple[Fraction, ...] = ()
    phi: Expr | None = None
    weight: Expr | None = None

    @property
    def expression(self) -> Expr | None:
        """What it was declared as, in x or in s; None of a softmax and of a polynomial."""
        return self.weight if self.phi is None else self.phi

    @property
    def degree(self) -> int:
        """The degree of the weight in s."""
        return len(self.coefficients) - 1

    @property
    def keeps_channels(self) -> bool:
        """Whether a state of this weight has the channels of phi(k) as rows: w = c * s."""
        return self.degree == 1 and self.coefficients[0] == 0

    def __str__(self) -> str:
        if self.kind == "softmax":
            return "softmax"
        if self.expression is not None:
            return to_text(self.expression)
        if self.coefficients == (Fraction(0), Fraction(1)):
            return "identity"
        taylor = tuple(Fraction(1, factorial(m)) for m in range(len(self.coefficients)))
        if self.coefficients == taylor:
            return f"taylor({self.degree})"
        return polynomial_text(self.coefficients)


def polynomial_text(parts: tuple[Fraction, ...]) -> str:
    """A polynomial in s as text that parses back."""
    terms: list[str] = []
    for m, part in enumerate(parts):
        if part == 0:
            continue
        size = abs(part)
        power = "" if m == 0 else "s" if m == 1 else f"s**{m}"
        if not power:
            text = number_text(size)
        elif size == 1:
            text = power
        elif size.numerator == 1:
            text = f"{power}/{size.denominator}"
        else:
            text = f"{number_text(size)}*{power}"
        sign = "-" if part < 0 else "+"
        terms.append(f" {sign} {text}" if terms else f"-{text}" if part < 0 else text)
    return "".join(terms) or "0"


def feature_map(value: str | Expr, source: Source) -> FeatureMap:
    """Read a feature map from text or from an expression.

    Raises:
        NoFamily: what is no weight of a pair.
        LimitExceeded: a polynomial of degree over 8.
    """
    if isinstance(value, str):
        word = value.strip()
        if word == "softmax":
            return FeatureMap("softmax")
        if word == "identity":
            return FeatureMap("polynomial", (Fraction(0), Fraction(1)))
        instead = "a feature map reads no declared tensor: a score does; or multiply q and k by it"
        words = ("softmax", "identity")
        scope = Scope(frozenset({"s", "x"}), _EVERY_FUNCTION, {}, instead, words)
        value = parse(source, scope)
    names = {node.id for node in walk(value) if isinstance(node, Name)}
    match value:
        case Call(function="taylor", args=(order,)):
            return _taylor(order, source, value)
    if "x" in names and "s" in names:
        raise NoFamily(
            f"feature map {source.text!r} mixes s and x",
            where=source.at(None),
            notes=("s is a score, x a channel of q or k: a weight is made of one or the other",),
        )
    if "x" in names:
        return FeatureMap("map", (Fraction(0), Fraction(1)), _check_map(value, source))
    return _weight(value, names, source)


def _taylor(order: Expr, source: Source, call: Call) -> FeatureMap:
    if not isinstance(order, Number) or order.value.denominator != 1 or order.value < 1:
        raise NoFamily(
            f"the order of {to_text(call)} is no whole number of at least 1",
            where=source.at(call.span),
            hints=("taylor(2) is 1 + s + s**2/2",),
        )
    p = int(order.value) if order.value <= MAX_DEGREE else MAX_DEGREE + 1
    if p > MAX_DEGREE:
        raise LimitExceeded(
            f"the weight has degree {number_text(order.value)}, at most {MAX_DEGREE} is allowed",
            where=source.at(call.span),
        )
    return FeatureMap("polynomial", tuple(Fraction(1, factorial(m)) for m in range(p + 1)))


def _weight(value: Expr, names: set[str], source: Source) -> FeatureMap:
    """A polynomial in s, which may fold into a state, or else a pointwise weight."""
    if value == Call("exp", (Name("s"),)):
        raise NoFamily(
            f"the weight {source.text!r} is a softmax's without its maximum, and overflows",
            where=source.at(None),
            hints=('exp(s) with a row sum is feature_map = "softmax"',),
        )
    try:
        parts = coefficients(value, "s")
    except DegreeTooHigh as error:
        raise LimitExceeded(
            f"the weight has degree {error.degree}, at most {MAX_DEGREE} is allowed",
            where=source.at(error.span),
        ) from None
    except NotPolynomial:
        parts = ()
    if not parts and "s" in names:
        return FeatureMap("pointwise", weight=_check_map(value, source))
    if len(parts) < 2:
        raise NoFamily(
            f"the weight {source.text!r} does not depend on q and k",
            where=source.at(None),
            notes=(_GRAMMAR,),
        )
    if max(abs(part) for part in parts) > 10**MAX_POWER_OF_TEN:
        raise LimitExceeded(
            f"a coefficient of the weight is over 1e{MAX_POWER_OF_TEN}", where=source.at(None)
        )
    return FeatureMap("polynomial", parts)


def _check_map(value: Expr, source: Source) -> Expr:
    if is_condition(value):
        raise NoFamily(
            f"the feature map {source.text!r} is a condition, not a number",
            where=source.at(None),
            hints=("write where(condition, a, b)",),
        )
    for node in walk(value):
        if isinstance(node, Call) and node.function not in _X_FUNCTIONS:
            raise NoFamily(
                f"{node.function} is no function of a feature map",
                where=source.at(node.span),
                notes=(f"those are {', '.join(sorted(_X_FUNCTIONS))}, and powers",),
            )
        if not isinstance(node, Number | Name | Binary | Call | Negate | Compare | Logic):
            raise NoFamily(
                f"{to_text(node)!r} is no part of a feature map",
                where=source.at(getattr(node, "span", None)),
                notes=(_GRAMMAR,),
            )
    return value


def nonnegative(feature: FeatureMap, scale_sign: int) -> bool:
    """Whether the weight is provably at least 0 for any q and k."""
    if feature.kind == "softmax":
        return True
    if feature.weight is not None:
        return _map_sign(feature.weight) >= 0 or interval(feature.weight)[0] >= 0
    if feature.phi is not None:
        bounded = _map_sign(feature.phi) >= 0 or interval(feature.phi)[0] >= 0
        return scale_sign >= 0 and bounded
    return nowhere_negative(feature.coefficients)


def _map_sign(phi: Expr) -> int:
    """1 where provably at least 0, -1 where unknown."""
    match phi:
        case Number():
            return 1
        case Call(function="exp" | "relu" | "sigmoid" | "softplus" | "abs" | "sqrt"):
            return 1
        case Call(function="max", args=args):
            return max(map(_map_sign, args))
        case Call(function="min", args=args) | Call(function="where", args=(_, *args)):
            return min(map(_map_sign, args))
        case Call(function="log1p" | "tanh" | "silu" | "softcap", args=args):
            return min(map(_map_sign, args))
        case Binary(op="+", left=Call(function="elu"), right=Number(value=value)) if value >= 1:
            return 1
        case Binary(op="+", left=Number(value=value), right=Call(function="elu")) if value >= 1:
            return 1
        case Binary(op="+" | "*" | "/", left=left, right=right):
            return min(_map_sign(left), _map_sign(right))
        case Binary(op="**", left=left, right=Number(value=power)):
            even = power.denominator == 1 and power.numerator % 2 == 0
            return 1 if even else _map_sign(left)
    return -1
