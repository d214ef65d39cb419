"""What has no value whatever the tensors are: log(0), (-8)**(1/3), exp(100) in fp32."""

from __future__ import annotations

from attnc.dsl.decay import interval
from attnc.dsl.expr import Binary, Call, Expr, walk
from attnc.dsl.limits import MAX_POWER_OF_TEN
from attnc.dsl.source import Source
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded, SyntaxRefused


def check_real(expr: Expr, source: Source) -> None:
    """See that each part of an expression may be a number of a size that kernels hold.

    Raises:
        SyntaxRefused: a part that is no real number for any tensors.
        LimitExceeded: a part that is over 1e30 for all of them: fp32 holds 3e38.
    """
    for node in walk(expr):
        why = _without_value(node)
        if why:
            raise SyntaxRefused(
                f"{to_text(node)} has no value: {why}", where=source.at(getattr(node, "span", None))
            )
        low, high = interval(node)
        if low > 10**MAX_POWER_OF_TEN or high < -(10**MAX_POWER_OF_TEN):
            raise LimitExceeded(
                f"{to_text(node)} is over 1e{MAX_POWER_OF_TEN} in size",
                where=source.at(getattr(node, "span", None)),
            )


def _without_value(node: Expr) -> str:
    match node:
        case Call(function="log", args=(inner,)) if interval(inner)[1] <= 0:
            return "a logarithm is one of a positive number"
        case Call(function="log1p", args=(inner,)) if interval(inner)[1] <= -1:
            return "log1p is one of a number over -1"
        case Call(function="sqrt", args=(inner,)) if interval(inner)[1] < 0:
            return "a root is one of a number that is not negative"
        case Binary(op="/", right=right) if interval(right) == (0, 0):
            return "it divides by 0"
        case Binary(op="**", left=left, right=right):
            (least, most), (low, high) = interval(right), interval(left)
            if low == high == 0 and most < 0:
                return "it divides by 0"
            if high < 0 and least == most and least % 1:
                return "a negative number has whole powers alone"
    return ""
