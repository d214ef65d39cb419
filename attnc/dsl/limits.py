"""What is refused for its size, before anything is expanded."""

from __future__ import annotations

import re
from fractions import Fraction

from attnc.dsl.expr import Binary, Expr, Negate, Number, Span, children
from attnc.dsl.source import Source
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded

MAX_TEXT = 2000


MAX_NODES = 200


MAX_EXPONENT = 16


MAX_DIGITS = 20


MAX_POWER_OF_TEN = 30


MAX_BITS = 256  # of a constant's numerator and denominator


_NUMBER = re.compile(r"(?<![\w.])(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE]([+-]?\d+))?")


def check_numbers(source: Source) -> None:
    """Refuse huge literals as text, before anything turns them into numbers."""
    for match in _NUMBER.finditer(source.text):
        digits, exponent = match.group(1), match.group(2)
        count = len(re.sub(r"[._]", "", digits).strip("0"))
        power = abs(int(exponent)) if exponent and len(exponent) < 8 else 0
        if exponent and len(exponent) >= 8:
            power = MAX_POWER_OF_TEN + 1
        size = len(re.sub(r"\..*|_", "", digits).lstrip("0"))
        if count > MAX_DIGITS or power > MAX_POWER_OF_TEN or size > MAX_POWER_OF_TEN:
            raise LimitExceeded(
                f"a number of {source.label} has more than {MAX_DIGITS} digits or a power of ten "
                f"over {MAX_POWER_OF_TEN}",
                where=source.at(Span(match.start(), match.end())),
            )


def constant_value(expr: Expr) -> Fraction | None:
    """The value of an expression of small literals, for the exponent's limit."""
    match expr:
        case Number(value=value):
            return value
        case Negate(operand=operand):
            inner = constant_value(operand)
            return None if inner is None else -inner
        case Binary(op=op, left=left, right=right) if op in {"+", "-", "*", "/"}:
            first, second = constant_value(left), constant_value(right)
            if first is None or second is None or (op == "/" and second == 0):
                return None
            return {
                "+": lambda: first + second,
                "-": lambda: first - second,
                "*": lambda: first * second,
                "/": lambda: first / second,
            }[op]()
        case Binary(op="**", left=left, right=right):
            base, power = constant_value(left), constant_value(right)
            if base is None or power is None:
                return None
            # checked on the way in: the power is at most 16, and the base of at most 256 bits
            if power.denominator == 1 and base != 0:
                return base**power.numerator
    return None


def bits(value: Fraction) -> int:
    """The size of an exact number."""
    return max(abs(value.numerator).bit_length(), value.denominator.bit_length())


def limited_text(expr: Expr, label: str) -> str:
    """The text of an expression built in Python, once it is known to be of a sane size.

    Raises:
        LimitExceeded: over 200 nodes, a shared part counted as often as it is read, or a number
            too long to write.
    """
    stack, count = [expr], 0
    while stack:
        node = stack.pop()
        count += 1
        if count > MAX_NODES:
            raise LimitExceeded(f"{label} has over {MAX_NODES} nodes")
        if isinstance(node, Number) and bits(node.value) > MAX_BITS:
            raise LimitExceeded(
                f"a number of {label} has more than {MAX_DIGITS} digits or a power of ten over "
                f"{MAX_POWER_OF_TEN}"
            )
        stack.extend(children(node))
    return to_text(expr)
