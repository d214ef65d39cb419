"""Expressions that mean the same by arithmetic's simplest laws become one tree."""

from __future__ import annotations

from fractions import Fraction

from attnc.dsl.expr import Binary, Call, Compare, Expr, Logic, Negate, Number
from attnc.dsl.text import to_text


def canonical(expr: Expr) -> Expr:
    """Fold constants, and sort what + and * join; nothing is expanded."""
    match expr:
        case Negate(operand=operand):
            inner = canonical(operand)
            return _number(-inner.value) if isinstance(inner, Number) else Negate(inner)
        case Binary(op="+" | "*", left=left, right=right):
            return _commute(expr.op, [*_terms(left, expr.op), *_terms(right, expr.op)])
        case Binary(op=op, left=left, right=right):
            return _fold(op, canonical(left), canonical(right))
        case Call(function=function, args=args):
            return Call(function, tuple(canonical(arg) for arg in args))
        case Compare(op=op, left=left, right=right):
            first, second = canonical(left), canonical(right)
            if op in {">", ">="}:
                return Compare({">": "<", ">=": "<="}[op], second, first)
            return Compare(op, first, second)
        case Logic(op="~", operands=(operand,)):
            return Logic("~", (canonical(operand),))
        case Logic(op=op):
            parts = sorted(_conditions(expr, op), key=to_text)
            result = parts[0]
            for part in parts[1:]:
                result = Logic(op, (result, part))
            return result
    return expr


def canonical_text(expr: Expr) -> str:
    """The text of an expression with constants folded and the operands of + and * sorted."""
    return to_text(canonical(expr))


def _conditions(expr: Expr, op: str) -> list[Expr]:
    if isinstance(expr, Logic) and expr.op == op:
        return [part for operand in expr.operands for part in _conditions(operand, op)]
    return [canonical(expr)]


def _terms(expr: Expr, op: str) -> list[Expr]:
    if isinstance(expr, Binary) and expr.op == op:
        return [*_terms(expr.left, op), *_terms(expr.right, op)]
    return [canonical(expr)]


def _commute(op: str, terms: list[Expr]) -> Expr:
    constant = Fraction(0) if op == "+" else Fraction(1)
    neutral = constant
    rest: list[Expr] = []
    for term in terms:
        value = _value(term)
        if value is None:
            rest.append(term)
        else:
            constant = constant + value if op == "+" else constant * value
    rest.sort(key=to_text)
    if constant != neutral or not rest:
        rest.insert(0, _number(constant))
    result = rest[0]
    for term in rest[1:]:
        result = Binary(op, result, term)
    return result


def _fold(op: str, left: Expr, right: Expr) -> Expr:
    first, second = _value(left), _value(right)
    if first is not None and second is not None:
        if op == "-":
            return _number(first - second)
        if op == "/" and second != 0:
            return _number(first / second)
        if op == "**" and second.denominator == 1 and abs(second) <= 16 and first != 0:
            return _number(first**second.numerator)
    return Binary(op, left, right)


def _value(expr: Expr) -> Fraction | None:
    match expr:
        case Number(value=value):
            return value
        case Negate(operand=Number(value=value)):
            return -value
    return None


def _number(value: Fraction) -> Expr:
    return Number(value) if value >= 0 else Negate(Number(-value))
