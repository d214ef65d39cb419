"""The names of the grammar as Python values: indices, functions, and declared tensors."""

from __future__ import annotations

from attnc.dsl.expr import Binary, Call, Expr, Name, Ref, lift
from attnc.dsl.grammar import OFFSET, full_index
from attnc.dsl.variant import Declared
from attnc.errors import FieldError

s, x, v = Name("s"), Name("x"), Name("v")
i, j, b, h, t = Name("i"), Name("j"), Name("b"), Name("h"), Name("t")
hkv, k, c = Name("hkv"), Name("k"), Name("c")
H, d = Name("H"), Name("d")


class _Tensor(Expr):
    """A declared tensor: `slope[h]` is an expression, and without axes so is `cap` itself."""

    __slots__ = ("declared",)
    kind = "param"

    def __init__(
        self, name: str, *, shape: str | tuple[str, ...] | list[str] = (), grad: bool = False
    ) -> None:
        if not isinstance(shape, str | tuple | list):
            raise FieldError(
                f"the shape of {name!r} is {shape!r}, not axis letters",
                hints=('write shape="b,t,h"; a tensor that is one number has none',),
            )
        letters = tuple(shape.replace(" ", "").split(",")) if isinstance(shape, str) else shape
        axes = tuple(letter for letter in letters if letter)
        self.declared = Declared(name, axes, grad, self.kind)

    def __getitem__(self, index: object) -> Expr:
        parts = index if isinstance(index, tuple) else (index,)
        letters = tuple(_letter(part) for part in parts)
        full = full_index(self.declared, letters)
        if full is None:
            shape = ", ".join(self.declared.shape)
            written = f"{self.declared.name}[{shape}]" if shape else self.declared.name
            raise FieldError(
                f"{self.declared.name}[{', '.join(letters)}] does not fit the shape [{shape}]",
                hints=(f"write {written}",),
            )
        return Ref(self.declared.name, full, None, self.declared)


def _letter(part: object) -> str:
    if part == Binary("-", i, j):
        return OFFSET
    return part.id if isinstance(part, Name) else str(part)


class Param(_Tensor):
    """A parameter of the model: `Param("slope", shape="h", grad=True)`."""

    __slots__ = ()
    kind = "param"


class Input(_Tensor):
    """A tensor that each call brings: `Input("g", shape="b,t,h")`."""

    __slots__ = ()
    kind = "input"


def _call(name: str, *args: object) -> Expr:
    return Call(name, tuple(lift(arg) for arg in args))


def exp(value: object) -> Expr:
    """e to the value."""
    return _call("exp", value)


def log(value: object) -> Expr:
    """The natural logarithm."""
    return _call("log", value)


def log1p(value: object) -> Expr:
    """log(1 + value), exact near 0."""
    return _call("log1p", value)


def sqrt(value: object) -> Expr:
    """The square root."""
    return _call("sqrt", value)


def tanh(value: object) -> Expr:
    """The hyperbolic tangent."""
    return _call("tanh", value)


def sigmoid(value: object) -> Expr:
    """1 / (1 + exp(-value))."""
    return _call("sigmoid", value)


def abs_(value: object) -> Expr:
    """The absolute value; `abs` in text."""
    return _call("abs", value)


def min_(*values: object) -> Expr:
    """The least of two or more; `min` in text."""
    return _call("min", *values)


def max_(*values: object) -> Expr:
    """The greatest of two or more; `max` in text."""
    return _call("max", *values)


def where(condition: object, yes: object, no: object) -> Expr:
    """`yes` where the condition holds, else `no`."""
    return _call("where", condition, yes, no)


def softcap(value: object, cap: object) -> Expr:
    """cap * tanh(value / cap)."""
    return _call("softcap", value, cap)


def relu(value: object) -> Expr:
    """max(value, 0)."""
    return _call("relu", value)


def elu(value: object) -> Expr:
    """The value where positive, exp(value) - 1 elsewhere."""
    return _call("elu", value)


def silu(value: object) -> Expr:
    """value * sigmoid(value)."""
    return _call("silu", value)


def softplus(value: object) -> Expr:
    """log(1 + exp(value))."""
    return _call("softplus", value)
