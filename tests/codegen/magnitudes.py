"""How large the integers of an emitted kernel may get: which 32-bit products pass 2**31.

A walk over the text with a width and a bound for each integer: those of sizes and indices are
below, all others follow. Sums are left out: what is added to a product is less than it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attnc.codegen.plan import Plan
from attnc.codegen.text.constants import constant
from attnc.codegen.text.render import kernel_symbol

TOKENS = 2**24
# what ops/near.py copies is further apart than that
IN_TILE = 2**22
_CHANNELS = 2**6
_REACH = 2**31
# a name that is assigned holds no more than that, whatever the statement says
_SIZES = {
    **dict.fromkeys(("T", "TQ", "TK", "NQ", "NK", "C", "first", "last", "s_q", "s_k"), TOKENS),
    **dict.fromkeys(("i_s", "i_p", "start", "stop", "lo", "hi", "n_u_n"), TOKENS),
    **dict.fromkeys(("HQ", "HKV", "HS"), 2**6),
    **dict.fromkeys(("N", "i_seq", "B"), 2**16),
    **dict.fromkeys(("NC", "i_c", "i_slot", "NT", "NB"), 2**20),
    **dict.fromkeys(("NS", "i_n", "MS", "segments"), 2**9),
    "i_t": 2**17,
    "CPS": 2**11,
    "o_e": 2**18,
}
_ENTRY = 2**24  # of an integer tensor, which is a position


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer or a tile of them; one of 0 bits is known when compiled."""

    bits: int
    bound: int


@dataclass(frozen=True, slots=True)
class Pointer:
    """An address, and the type of what stands there."""

    dtype: str


Value = Whole | Pointer | None


def narrow_products(plan: Plan, text: str) -> list[str]:
    """The products of 32 bits in the emitted kernels of a plan that may pass 2**31, by line."""
    tree = ast.parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: dict[str, None] = {}
    for step in plan.passes:
        kernel = step.kernel
        values: dict[str, Value] = {tensor.name: Pointer(tensor.dtype) for tensor in kernel.tensors}
        for tensor in kernel.tensors:
            values |= {name: Whole(32, _stride(name)) for name in tensor.strides}
        values |= {name: Whole(32, _SIZES.get(name, 2**16)) for name in kernel.scalars}
        for name in kernel.constants:
            number = constant(plan, step, name)
            values[name] = Whole(0, number) if isinstance(number, int) else None
        symbol = kernel_symbol(plan, kernel)
        if symbol in functions:
            walk = _Walk(values)
            walk.run(functions[symbol].body)
            found |= dict.fromkeys(f"{symbol}: {product}" for product in walk.found)
    return list(found)


def _stride(name: str) -> int:
    """Batch entries, heads and blocks lie anywhere, tokens and channels as far as tiles reach."""
    axis = name.rpartition("_")[2]
    return IN_TILE if axis in {*"tij"} else _CHANNELS if axis in {*"kvcf"} else _REACH - 1


class _Walk:
    """One pass over a kernel's statements, loops twice: what one round leaves the next may read."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.values = values
        self.found: list[str] = []

    def run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._assign(name, self.value(value))
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._assign(name, self.value(value))
                case ast.For(target=ast.Name(id=name), iter=ast.Call(args=ends)):
                    wholes = [v for v in map(self.value, ends) if isinstance(v, Whole)]
                    most = max((v.bound for v in wholes), default=TOKENS)
                    self._assign(name, Whole(max([32, *(v.bits for v in wholes)]), most))
                    self.run(statement.body)
                    self.run(statement.body)
                case ast.If(test=test) | ast.While(test=test):
                    self.value(test)
                    self.run(statement.body)
                    self.run(statement.orelse)
                case ast.Expr(value=value):
                    self.value(value)

    def _assign(self, name: str, value: Value) -> None:
        if isinstance(value, Whole) and name in _SIZES:
            value = Whole(value.bits, min(value.bound, _SIZES[name]))
        self.values[name] = value

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int() as number):
                return Whole(0, abs(number))
            case ast.Name(id=name):
                return self.values.get(name)
            case ast.Subscript(value=inner) | ast.UnaryOp(operand=inner):
                return self.value(inner)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, op, self.value(left), self.value(right))
            case ast.Call(func=ast.Attribute(value=of, attr="to"), args=[kind]):
                return _cast(self.value(of), ast.unparse(kind))
            case ast.Call(func=function, args=arguments, keywords=keywords):
                values = [self.value(argument) for argument in arguments]
                for keyword in keywords:
                    self.value(keyword.value)
                name = ast.unparse(function).rpartition(".")[2]
                if name == "cast":
                    return _cast(values[0], ast.unparse(arguments[1]))
                return _CALLS[name](values) if name in _CALLS else None
        for child in _expressions(node):
            self.value(child)
        return None

    def _binary(self, node: ast.expr, op: ast.operator, left: Value, right: Value) -> Value:
        for value in (left, right):
            if isinstance(value, Pointer):
                return value
        if not (isinstance(left, Whole) and isinstance(right, Whole)):
            return None
        bits, bound = max(left.bits, right.bits), max(left.bound, right.bound)
        match op:
            case ast.Mult():
                bound = left.bound * right.bound
            case ast.LShift():
                bound = left.bound << min(right.bound, 12)
            case ast.FloorDiv() if right.bits == 0:
                bound = left.bound // max(1, right.bound)
            case ast.FloorDiv() | ast.RShift():
                bound = left.bound
            case ast.Mod():
                bound = min(left.bound, right.bound)
        if isinstance(op, ast.Mult) and bits == 32 and bound >= _REACH:
            self.found.append(f"line {node.lineno}: {ast.unparse(node)}")
            bound = _REACH - 1
        return Whole(bits, bound)


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    return (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


def _cast(value: Value, kind: str) -> Value:
    if not kind.endswith(("int32", "int64")):
        return None
    bound = value.bound if isinstance(value, Whole) else _ENTRY
    return Whole(int(kind[-2:]), bound)


def _load(values: list[Value]) -> Value:
    at = values[0]
    whole = isinstance(at, Pointer) and at.dtype in {"i32", "i64"}
    return Whole(32, _ENTRY) if whole else None


def _quotient(whole: Value, part: Value) -> Value:
    if not (isinstance(whole, Whole) and isinstance(part, Whole)):
        return None
    return Whole(whole.bits, whole.bound // (part.bound if part.bits == 0 else 1) + 1)


def _least(values: list[Value]) -> Value:
    wholes = [value for value in values if isinstance(value, Whole)]
    if len(wholes) < len(values):
        return None
    return Whole(max(v.bits for v in wholes), min(v.bound for v in wholes))


def _most(values: list[Value]) -> Value:
    wholes = [value for value in values if isinstance(value, Whole)]
    if not wholes:
        return None
    return Whole(max(v.bits for v in wholes), max(v.bound for v in wholes))


_CALLS: dict[str, Callable[[list[Value]], Value]] = {
    "program_id": lambda _: Whole(32, 2**20),
    "arange": lambda values: Whole(32, values[1].bound if isinstance(values[1], Whole) else 0),
    "load": _load,
    "minimum": _least,
    "maximum": _most,
    "where": lambda values: _most(values[1:]),
    "cdiv": lambda values: _quotient(*values),
    "sum": lambda values: _most(values[:1]),
    "cumsum": lambda values: _most(values[:1]),
}
