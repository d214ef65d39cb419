"""Exact polynomials of one name, read off an expression without expanding anything large."""

from __future__ import annotations

from fractions import Fraction

from attnc.dsl.expr import Binary, Call, Expr, Name, Negate, Number, Span, walk
from attnc.dsl.limits import constant_value

MAX_DEGREE = 8
Coefficients = tuple[Fraction, ...]


class NotPolynomial(Exception):
    """The expression is no polynomial of the name; `span` is the part that is not."""

    def __init__(self, message: str, span: Span | None) -> None:
        super().__init__(message)
        self.message = message
        self.span = span


class DegreeTooHigh(Exception):
    """The polynomial's degree is over the limit."""

    def __init__(self, degree: int, span: Span | None) -> None:
        super().__init__(f"degree {degree}")
        self.degree = degree
        self.span = span


def coefficients(expr: Expr, name: str) -> Coefficients:
    """Coefficients of the powers of `name`, the constant first, no zero at the end.

    Raises:
        NotPolynomial: another name, a function, or a division by the name.
        DegreeTooHigh: a degree over 8.
    """
    try:
        return _trim(_read(expr, name))
    except DegreeTooHigh:
        # s**16*exp(-s) has no degree
        if _is_polynomial(expr, name):
            raise
        raise NotPolynomial(f"only numbers, {name} and arithmetic make one", None) from None


def constants_in_the_way(expr: Expr, name: str) -> list[Expr]:
    """Calls without the name, such as sqrt(2), but for which the expression is a polynomial."""
    found: list[Expr] = []

    def replaced(node: Expr) -> Expr:
        if isinstance(node, Call) and Name(name) not in walk(node):
            found.append(node)
            return Number(Fraction(2))
        match node:
            case Binary(op="**", left=left, right=right):
                return Binary("**", replaced(left), right)
            case Binary(op=op, left=left, right=right):
                return Binary(op, replaced(left), replaced(right))
            case Negate(operand=operand):
                return Negate(replaced(operand))
        return node

    try:
        coefficients(replaced(expr), name)
    except (NotPolynomial, DegreeTooHigh):
        return []
    return found


def _is_polynomial(expr: Expr, name: str) -> bool:
    """Whether the expression is a polynomial of any degree, found without expanding it."""
    match expr:
        case Number():
            return True
        case Name(id=found):
            return found == name
        case Negate(operand=operand):
            return _is_polynomial(operand, name)
        case Binary(op="**", left=left, right=right):
            power = constant_value(right)
            whole = power is not None and power.denominator == 1 and power >= 0
            return whole and _is_polynomial(left, name)
        case Binary(op=op, left=left, right=right):
            divides = op == "/" and Name(name) in walk(right)
            return not divides and _is_polynomial(left, name) and _is_polynomial(right, name)
    return False


def _read(expr: Expr, name: str) -> Coefficients:
    span: Span | None = getattr(expr, "span", None)
    match expr:
        case Number(value=value):
            return (value,)
        case Name(id=found) if found == name:
            return (Fraction(0), Fraction(1))
        case Negate(operand=operand):
            return tuple(-part for part in _read(operand, name))
        case Binary(op="+" | "-", left=left, right=right):
            return _add(_read(left, name), _read(right, name), 1 if expr.op == "+" else -1)
        case Binary(op="*", left=left, right=right):
            return _multiply(_read(left, name), _read(right, name), span)
        case Binary(op="/", left=left, right=right):
            below = _trim(_read(right, name))
            if len(below) > 1:
                raise NotPolynomial(f"it divides by {name}", span)
            if below[0] == 0:
                raise NotPolynomial("it divides by 0", span)
            return tuple(part / below[0] for part in _read(left, name))
        case Binary(op="**", left=left, right=right):
            return _power(_read(left, name), _trim(_read(right, name)), span)
    raise NotPolynomial(f"only numbers, {name} and arithmetic make a polynomial", span)


def _power(base: Coefficients, exponent: Coefficients, span: Span | None) -> Coefficients:
    power = exponent[0]
    if len(exponent) > 1 or power.denominator != 1 or power < 0:
        raise NotPolynomial("its exponent is no whole number of at least 0", span)
    base = _trim(base)
    degree = (len(base) - 1) * int(power)
    if degree > MAX_DEGREE:
        raise DegreeTooHigh(degree, span)
    result: Coefficients = (Fraction(1),)
    for _ in range(int(power)):
        result = _multiply(result, base, span)
    return result


def _add(left: Coefficients, right: Coefficients, sign: int) -> Coefficients:
    size = max(len(left), len(right))
    padded = [(*side, *(Fraction(0) for _ in range(size - len(side)))) for side in (left, right)]
    return tuple(a + sign * b for a, b in zip(*padded, strict=True))


def _multiply(left: Coefficients, right: Coefficients, span: Span | None) -> Coefficients:
    left, right = _trim(left), _trim(right)
    degree = len(left) + len(right) - 2
    if degree > MAX_DEGREE:
        raise DegreeTooHigh(degree, span)
    result = [Fraction(0)] * (degree + 1)
    for m, a in enumerate(left):
        for n, b in enumerate(right):
            result[m + n] += a * b
    return tuple(result)


def _trim(parts: Coefficients) -> Coefficients:
    end = len(parts)
    while end > 1 and parts[end - 1] == 0:
        end -= 1
    return parts[:end]
