"""Expression -> text that parses back to an equal tree."""

from __future__ import annotations

from fractions import Fraction

from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Name, Negate, Number, Ref

# how tightly each form binds: a part that binds less tightly takes parentheses
_LEVELS = {"|": 1, "&": 2, "cmp": 3, "+": 4, "-": 4, "*": 5, "/": 5, "neg": 6, "**": 7, "atom": 8}


def to_text(node: Expr) -> str:
    """An expression as text that parses to an equal tree."""
    return _text(node)[0]


def _text(node: Expr) -> tuple[str, int]:
    match node:
        case Number(value=value):
            text = number_text(value)
            return text, _LEVELS["/"] if "/" in text else _LEVELS["atom"]
        case Name(id=name):
            return name, _LEVELS["atom"]
        case Ref(name=name, index=index):
            return f"{name}[{', '.join(index)}]", _LEVELS["atom"]
        case Negate(operand=operand):
            return f"-{_wrapped(operand, _LEVELS['neg'])}", _LEVELS["neg"]
        case Binary(op="**", left=left, right=right):
            # ** binds to the right, and tighter than a minus on its left
            power = f"{_wrapped(left, _LEVELS['atom'])}**{_wrapped(right, _LEVELS['neg'])}"
            return power, _LEVELS["**"]
        case Binary(op=op, left=left, right=right):
            level = _LEVELS[op]
            return f"{_wrapped(left, level)} {op} {_wrapped(right, level + 1)}", level
        case Call(function="documents" | "blocks" as function, args=(Ref(name=name), *others)):
            # these take a tensor whole
            return f"{function}({', '.join([name, *map(to_text, others)])})", _LEVELS["atom"]
        case Call(function=function, args=args):
            return f"{function}({', '.join(to_text(arg) for arg in args)})", _LEVELS["atom"]
        case Compare(op=op, left=left, right=right):
            level = _LEVELS["cmp"]
            return f"{_wrapped(left, level + 1)} {op} {_wrapped(right, level + 1)}", level
        case Logic(op="~", operands=(operand,)):
            return f"~{_wrapped(operand, _LEVELS['atom'])}", _LEVELS["neg"]
        case Logic(op=op, operands=(left, right)):
            level = _LEVELS[op]
            # Python's & binds tighter than a comparison: those keep their parentheses
            return f"{_logic_side(left, level)} {op} {_logic_side(right, level + 1)}", level
    raise AssertionError(f"no text for {node!r}")


def _wrapped(node: Expr, level: int) -> str:
    text, own = _text(node)
    return text if own >= level else f"({text})"


def _logic_side(node: Expr, level: int) -> str:
    text, own = _text(node)
    comparison = own == _LEVELS["cmp"]
    return f"({text})" if own < level or comparison else text


def number_text(value: Fraction) -> str:
    """A number as text that parses back: an integer, a decimal where exact, else a quotient."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest == 1 and len(repr(float(value))) < 20 and Fraction(repr(float(value))) == value:
        return repr(float(value))
    return f"{value.numerator}/{value.denominator}"
