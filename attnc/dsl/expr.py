"""Expressions: frozen trees, the same whether written in Python or parsed from text."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from attnc.errors import SyntaxRefused

if TYPE_CHECKING:
    from attnc.dsl.variant import Declared


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the expression's text: 0-based start and end columns."""

    start: int
    end: int


class Expr:
    """Any expression; Python's operators build larger ones.

    `==` compares trees, as of any value; `eq(a, b)` builds the comparison.
    """

    __slots__ = ()

    def __add__(self, other: object) -> Expr:
        return Binary("+", lift(self), lift(other))

    def __radd__(self, other: object) -> Expr:
        return Binary("+", lift(other), lift(self))

    def __sub__(self, other: object) -> Expr:
        return Binary("-", lift(self), lift(other))

    def __rsub__(self, other: object) -> Expr:
        return Binary("-", lift(other), lift(self))

    def __mul__(self, other: object) -> Expr:
        return Binary("*", lift(self), lift(other))

    def __rmul__(self, other: object) -> Expr:
        return Binary("*", lift(other), lift(self))

    def __truediv__(self, other: object) -> Expr:
        return Binary("/", lift(self), lift(other))

    def __rtruediv__(self, other: object) -> Expr:
        return Binary("/", lift(other), lift(self))

    def __pow__(self, other: object) -> Expr:
        return Binary("**", lift(self), lift(other))

    def __rpow__(self, other: object) -> Expr:
        return Binary("**", lift(other), lift(self))

    def __neg__(self) -> Expr:
        return Negate(lift(self))

    def __pos__(self) -> Expr:
        return self

    def __abs__(self) -> Expr:
        return Call("abs", (lift(self),))

    def __lt__(self, other: object) -> Expr:
        return Compare("<", lift(self), lift(other))

    def __le__(self, other: object) -> Expr:
        return Compare("<=", lift(self), lift(other))

    def __gt__(self, other: object) -> Expr:
        return Compare(">", lift(self), lift(other))

    def __ge__(self, other: object) -> Expr:
        return Compare(">=", lift(self), lift(other))

    def __and__(self, other: object) -> Expr:
        return Logic("&", (lift(self), lift(other)))

    def __rand__(self, other: object) -> Expr:
        return Logic("&", (lift(other), lift(self)))

    def __or__(self, other: object) -> Expr:
        return Logic("|", (lift(self), lift(other)))

    def __ror__(self, other: object) -> Expr:
        return Logic("|", (lift(other), lift(self)))

    def __invert__(self) -> Expr:
        return Logic("~", (lift(self),))

    def __bool__(self) -> bool:
        raise SyntaxRefused(
            "an expression has no truth value in Python",
            notes=("`and`, `or`, `not` and chained comparisons ask for one",),
            hints=("write a & b, a | b, ~a, and (a < b) & (b < c)",),
        )


@dataclass(frozen=True, slots=True)
class Number(Expr):
    """An exact number: 0.1 is one tenth, in text and in Python."""

    value: Fraction
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Name(Expr):
    """An index, the score `s`, the channel value `x`, or a parameter without axes."""

    id: str
    span: Span | None = field(default=None, compare=False, repr=False)
    declared: Declared | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ref(Expr):
    """A declared tensor at an index: `slope[h]`; `index` has a letter for every axis."""

    name: str
    index: tuple[str, ...]
    span: Span | None = field(default=None, compare=False, repr=False)
    declared: Declared | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Negate(Expr):
    """-operand."""

    operand: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """Arithmetic: + - * / **."""

    op: str
    left: Expr
    right: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """A function of the grammar."""

    function: str
    args: tuple[Expr, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Compare(Expr):
    """A comparison: < <= > >= == !=."""

    op: str
    left: Expr
    right: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Logic(Expr):
    """& and | of two conditions, ~ of one."""

    op: str
    operands: tuple[Expr, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


# what a user most likely wrote where True or False arrives
COMPARED = ("== and != compare values in Python: write eq(i, j), or ~eq(i, j)",)


def lift(value: object) -> Expr:
    """A Python number as an expression; 0.1 becomes one tenth exactly, as in text."""
    if isinstance(value, Expr):
        declared = getattr(value, "declared", None)
        if declared is not None and not isinstance(value, Name | Ref):
            return _scalar(declared)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise SyntaxRefused(
            f"{value!r} is no part of an expression",
            notes=("an expression is made of numbers, indices, functions and declared tensors",),
            hints=COMPARED if isinstance(value, bool) else (),
        )
    if isinstance(value, float):
        if value != value or value in {float("inf"), float("-inf")}:
            raise SyntaxRefused(f"{value!r} is not a finite number")
        # a float of numpy's is a float with another repr
        return _signed(Fraction(repr(float(value))))
    return _signed(Fraction(value))


def _scalar(declared: Declared) -> Expr:
    """A declared tensor used by name: one without axes is a number."""
    if declared.shape:
        letters = ", ".join(declared.shape)
        raise SyntaxRefused(
            f"{declared.name!r} has axes and no index",
            notes=(f"it is declared with shape [{letters}]",),
            hints=(f"write {declared.name}[{letters}]",),
        )
    return Name(declared.name, None, declared)


def _signed(value: Fraction) -> Expr:
    # text has no negative literals: -2 is the negation of 2, here as there
    return Number(value) if value >= 0 else Negate(Number(-value))


def children(node: Expr) -> tuple[Expr, ...]:
    """The direct parts of a node."""
    match node:
        case Negate(operand=operand):
            return (operand,)
        case Binary(left=left, right=right) | Compare(left=left, right=right):
            return (left, right)
        case Call(args=args):
            return args
        case Logic(operands=operands):
            return operands
    return ()


def walk(node: Expr) -> list[Expr]:
    """Every node, parents first."""
    found: list[Expr] = []
    stack = [node]
    while stack:
        current = stack.pop()
        found.append(current)
        stack.extend(reversed(children(current)))
    return found


def is_condition(expr: Expr) -> bool:
    """Whether an expression is true or false, rather than a number."""
    match expr:
        case Compare() | Logic() | Name(id="causal" | "full"):
            return True
        case Call(function="window" | "prefix" | "documents" | "blocks"):
            return True
    return False


def eq(left: object, right: object) -> Expr:
    """The comparison left == right; Python's own == compares trees."""
    return Compare("==", lift(left), lift(right))


def used_names(*expressions: Expr | None) -> frozenset[str]:
    """The declared tensors that expressions read."""
    found: set[str] = set()
    for expression in expressions:
        if expression is None:
            continue
        for node in walk(expression):
            if isinstance(node, Ref):
                found.add(node.name)
            elif isinstance(node, Name) and node.declared is not None:
                found.add(node.id)
    return frozenset(found)
