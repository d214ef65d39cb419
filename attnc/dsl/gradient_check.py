"""Which declared tensors can have the gradient that they ask for."""

from __future__ import annotations

from attnc.dsl.expr import Binary, Call, Expr, Name, Negate, Ref, used_names, walk
from attnc.dsl.fields import Fields
from attnc.dsl.text import to_text
from attnc.dsl.variant import Declared


def check_grad(fields: Fields, declared: tuple[Declared, ...], *expressions: Expr | None) -> None:
    """A tensor whose every use is inside a condition has no gradient; say so when declared."""
    smooth: set[str] = set()
    for expression in expressions:
        if expression is not None:
            smooth |= _smooth_names(expression)
    used = used_names(*expressions)
    for tensor in declared:
        if tensor.grad and {"h", "hkv"} <= set(tensor.shape):
            raise fields.refuse(
                f"{tensor.kind}s.{tensor.name}",
                f"{tensor.name!r} asks for a gradient, and has an axis h and an axis hkv",
                notes=("query head h reads one key/value head: all other entries would get 0",),
                hints=("give it the axis h alone", "or set grad = false"),
            )
        twice = _read_twice(tensor, expressions) if tensor.grad else None
        if twice is not None:
            raise fields.refuse(
                f"{tensor.kind}s.{tensor.name}",
                f"{tensor.name!r} asks for a gradient, and {to_text(twice)} reads two of its axes "
                "at one token",
                notes=("only its diagonal is read: all other entries would get 0",),
                hints=("declare the diagonal, with one axis of tokens", "or set grad = false"),
            )
        if tensor.grad and tensor.name in used and tensor.name not in smooth:
            raise fields.refuse(
                f"{tensor.kind}s.{tensor.name}",
                f"{tensor.name!r} asks for a gradient and has none",
                notes=("it is used in conditions alone, which are flat almost everywhere",),
                hints=("set grad = false",),
            )


def _read_twice(tensor: Declared, expressions: tuple[Expr | None, ...]) -> Ref | None:
    """Where a tensor is read on a diagonal; a value's t and j are one token."""
    for expression in expressions:
        for node in () if expression is None else walk(expression):
            if isinstance(node, Ref) and node.name == tensor.name:
                places = ["j" if letter == "t" else letter for letter in node.index]
                if len(set(places)) < len(places):
                    return node
    return None


def _smooth_names(expr: Expr) -> set[str]:
    match expr:
        case Ref(name=name):
            return {name}
        case Name(id=name):
            return {name}
        case Negate(operand=operand):
            return _smooth_names(operand)
        case Binary(left=left, right=right):
            return _smooth_names(left) | _smooth_names(right)
        case Call(function="where", args=(_, yes, no)):
            return _smooth_names(yes) | _smooth_names(no)
        case Call(args=args):
            return {name for arg in args for name in _smooth_names(arg)}
    return set()
