"""What has no value whatever the tensors are: log(0), (-8)**(1/3), exp(100) in fp32."""

from __future__ import annotations

from attnc.dsl.decay import interval
from attnc.dsl.expr import Binary, Call, Expr, Name, Negate, Number, Ref, walk
from attnc.dsl.limits import MAX_POWER_OF_TEN
from attnc.dsl.source import Source
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded, SyntaxRefused

# as a float 1e30 is a little more than as a whole number
_MOST = float(10**MAX_POWER_OF_TEN)


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
        if low > _MOST or high < -_MOST:
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
            most, (low, high) = interval(right)[1], interval(left)
            if low == high == 0 and most < 0:
                return "it divides by 0"
            if high < 0 and not _whole(right):
                return "a negative number has whole powers alone"
    return ""


def _whole(expr: Expr) -> bool:
    """Whether a power may be a whole number; tensors without a gradient may hold some."""
    match expr:
        case Number(value=value):
            return value.denominator == 1
        case Name(id=name, declared=declared):
            return name not in {"s", "v", "x"} and not (declared and declared.grad)
        case Ref(declared=declared):
            return declared is not None and not declared.grad
        case Negate(operand=operand):
            return _whole(operand)
        case Binary(op="+" | "-" | "*", left=left, right=right):
            return _whole(left) and _whole(right)
        case Binary():
            return interval(expr)[0] == interval(expr)[1] and interval(expr)[0] % 1 == 0
        case Call(function="min" | "max" | "abs", args=args):
            return all(map(_whole, args))
        case Call(function="where", args=(_, yes, no)):
            return _whole(yes) and _whole(no)
    return False
