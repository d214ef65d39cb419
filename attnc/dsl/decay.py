"""Where a log decay is legal, and the proof that it is not positive."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attnc.dsl.expr import Binary, Call, Expr, Name, Negate, Number, Ref, walk
from attnc.dsl.mask import MaskForm
from attnc.dsl.proof import within_causal
from attnc.dsl.source import Source
from attnc.errors import DecayRefused

if TYPE_CHECKING:
    from attnc.dsl.feature import FeatureMap

Interval = tuple[float, float]
_ANY: Interval = (-math.inf, math.inf)


def check_decay(name: str, log_decay: Expr, source: Source, form: MaskForm, family: str) -> None:
    """Refuse a decay of what is no state, outside j <= i, or provably positive.

    Raises:
        DecayRefused: one of the three; a decay of unknown sign (`-slope[h]`) is accepted.
    """
    where = source.at(None)
    if family == "softmax":
        raise DecayRefused(
            f"{name!r} declares log_decay and softmax",
            where=where,
            notes=("a decay multiplies the weight; in a softmax that is a term of the score",),
            hints=('write it into the score: score = "s - slope[h]*(i - j)"',),
        )
    if family == "pointwise":
        raise DecayRefused(
            f"{name!r} declares log_decay and a weight that is no polynomial in s",
            where=where,
            notes=("a decay fades a state, and no state holds such a weight",),
            hints=('what changes with the distance stands in the score: score = "s - h*(i - j)"',),
        )
    if not within_causal(form):
        raise DecayRefused(
            f"{name!r} declares log_decay and a mask that is not within j <= i",
            where=where,
            notes=("a decay runs from a key to a later query; for j > i it would grow",),
            hints=('add "causal & ..." to the mask',),
        )
    low, high = interval(log_decay)
    if low >= 0 and high > 0:
        raise DecayRefused(
            f"log_decay of {name!r} is positive: at least {low:g}",
            where=where,
            notes=("log_decay is the log of what a token keeps of the past, at most 0",),
            hints=("change its sign",),
        )


def check_channels(name: str, log_decay: Expr, source: Source, feature: FeatureMap) -> None:
    """Refuse a decay a channel of k where the state keeps anything but the channels of phi(k).

    Raises:
        DecayRefused: the feature map is a polynomial with another term than s.
    """
    reads = [node for node in walk(log_decay) if isinstance(node, Ref) and "k" in node.index]
    if not reads or feature.keeps_channels:
        return
    raise DecayRefused(
        f"{name!r} declares a decay a channel and the weight {feature}",
        where=source.at(reads[0].span),
        notes=(
            "a gate of channel k multiplies that row of the state; "
            "a polynomial's state has products of channels as rows",
        ),
        hints=('use feature_map = "identity" or a map such as "elu(x) + 1"', "or a gate a token"),
    )


def interval(expr: Expr) -> Interval:
    """Bounds of an expression: h in [0, H - 1], H at least 1, tensors and channels unknown."""
    match expr:
        case Number(value=value):
            return float(value), float(value)
        case Name(id="H" | "d"):
            return 1.0, math.inf
        case Name(id="h" | "b" | "hkv" | "t"):
            return 0.0, math.inf
        case Negate(operand=operand):
            low, high = interval(operand)
            return -high, -low
        case Binary(op=op, left=left, right=right):
            return _binary(op, interval(left), interval(right))
        case Call(function=function, args=args):
            return _call(function, [interval(arg) for arg in args])
    return _ANY


def _binary(op: str, left: Interval, right: Interval) -> Interval:
    if op == "+":
        return left[0] + right[0], left[1] + right[1]
    if op == "-":
        return left[0] - right[1], left[1] - right[0]
    if op == "*":
        return _corners(left, right)
    if op == "/" and (right[0] > 0 or right[1] < 0):
        return _corners(left, (_inverse(right[1]), _inverse(right[0])))
    if op == "**" and left[0] > 0:
        logs = _corners((_log(left[0]), _log(left[1])), right)
        return _exp(logs[0]), _exp(logs[1])
    if op == "**" and right[0] == right[1] and right[0] % 2 == 0:
        return 0.0, math.inf
    return _ANY


def _corners(left: Interval, right: Interval) -> Interval:
    products = [a * b if a and b else 0.0 for a in left for b in right]
    return min(products), max(products)


def _inverse(value: float) -> float:
    return 0.0 if math.isinf(value) else 1.0 / value


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.inf if math.isinf(value) else math.log(value)


def _call(function: str, args: list[Interval]) -> Interval:
    low, high = args[0]
    match function:
        case "exp":
            return _exp(low), _exp(high)
        case "log":
            return _log(low), _log(high)
        case "log1p":
            return _log(1 + low), _log(1 + high)
        case "tanh":
            return math.tanh(low), math.tanh(high)
        case "sigmoid":
            return _sigmoid(low), _sigmoid(high)
        case "softplus":
            return _softplus(low), _softplus(high)
        case "relu":
            return max(low, 0.0), max(high, 0.0)
        case "sqrt":
            return math.sqrt(max(low, 0.0)), math.sqrt(high) if high > 0 else 0.0
        case "abs":
            inside = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
            return inside, max(abs(low), abs(high))
        case "elu":
            return (low if low > 0 else max(_exp(low) - 1, -1.0)), high
        case "min":
            return min(a for a, _ in args), min(b for _, b in args)
        case "max":
            return max(a for a, _ in args), max(b for _, b in args)
        case "softcap":
            # it has the sign of its first argument, and no more than the size of the second
            cap = max(map(abs, args[1]))
            return (0.0 if low >= 0 else -cap), (0.0 if high <= 0 else cap)
        case "where":
            return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
    return _ANY


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + _exp(-value))


def _softplus(value: float) -> float:
    return value if value > 700 else math.log1p(_exp(value))
