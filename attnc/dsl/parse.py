"""Text -> expression, by a whitelist over Python's `ast`; nothing is ever evaluated."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from difflib import get_close_matches
from fractions import Fraction

from attnc.dsl.expr import (
    Binary,
    Call,
    Compare,
    Expr,
    Logic,
    Name,
    Negate,
    Number,
    Ref,
    Span,
    is_condition,
)
from attnc.dsl.grammar import FUNCTIONS, INDEX_NAMES, OFFSET, full_index
from attnc.dsl.limits import (
    MAX_BITS,
    MAX_EXPONENT,
    MAX_POWER_OF_TEN,
    bits,
    constant_value,
)
from attnc.dsl.parse_data import documents_of, named_tensor, table_of_blocks
from attnc.dsl.source import Scope, Source
from attnc.dsl.syntax import Syntax, letter_of
from attnc.errors import LimitExceeded, SyntaxRefused, UnknownName

_ARITHMETIC: Mapping[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}
_LOGIC: Mapping[type[ast.operator], str] = {ast.BitAnd: "&", ast.BitOr: "|"}
_COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_AXES = (INDEX_NAMES - {"s", "x", "v", "H", "d"}) | {"T", "z", "k1", "n1", "k2", "n2"}
_DECIMAL = re.compile(r"[\d_]*\.?[\d_]*(?:[eE][+-]?\d+)?\Z")


def parse(source: Source, scope: Scope) -> Expr:
    """Parse one expression.

    Raises:
        SyntaxRefused: something outside the grammar.
        UnknownName: a name that is neither an index nor declared.
        LimitExceeded: over 2,000 characters, 200 nodes, or an exponent over 16.
    """
    syntax = Syntax(source)
    return _Parser(syntax, scope).convert(syntax.body())


class _Parser:
    def __init__(self, syntax: Syntax, scope: Scope) -> None:
        self.syntax = syntax
        self.source = syntax.source
        self.scope = scope

    def convert(self, node: ast.expr) -> Expr:
        span = self.syntax.span(node)
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value, span)
            case ast.Name(id=name):
                return self._name(node, name, span)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Negate(self._value(operand), span)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._value(operand)
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return Logic("~", (self._condition(operand),), span)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
                return self._arithmetic(_ARITHMETIC[type(op)], left, right, span)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _LOGIC:
                sides = (self._condition(left), self._condition(right))
                return Logic(_LOGIC[type(op)], sides, span)
            case ast.Compare():
                return self._comparison(node, span)
            case ast.Call():
                return self._call(node, span)
            case ast.Subscript():
                return self._subscript(node, span)
        raise self.syntax.outside(node, masked="causal" in self.scope.names)

    def _constant(self, node: ast.expr, value: object, span: Span) -> Expr:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.syntax.refuse(node, f"{value!r} is not a number")
        text = self.source.text[span.start : span.end]
        if not _DECIMAL.match(text):
            raise self.syntax.refuse(node, f"{text} is not a decimal number")
        return Number(Fraction(text.replace("_", "")), span)

    def _name(self, node: ast.expr, name: str, span: Span) -> Expr:
        if name in self.scope.names:
            return Name(name, span)
        declared = self.scope.declared.get(name)
        if declared is not None:
            if declared.shape:
                letters = ", ".join(declared.shape)
                raise self.syntax.refuse(
                    node,
                    f"{name!r} has axes and no index",
                    f"write {name}[{letters}]",
                    notes=(f"it is declared with shape [{letters}]",),
                )
            return Name(name, span, declared)
        raise self._unknown(node, name)

    def _unknown(
        self, node: ast.expr, name: str, axes: tuple[str, ...] = ("h",), kind: str = "param"
    ) -> UnknownName:
        if name in FUNCTIONS:
            raise self.syntax.refuse(node, f"{name!r} is a function", f"write {name}(...)")
        offered = [*sorted(self.scope.names - self.scope.hidden), *self.scope.declared]
        words = self.scope.words if self.source.text.strip() == name else ()
        known = [*words, *offered, *sorted(self.scope.functions)]
        close = get_close_matches(name, known, 1)
        hints = (f"did you mean {close[0]!r}?",) if close else ()
        notes = (f"names here: {', '.join(offered)}",) if offered else ()
        if words:
            notes = (*notes, f"or one word alone: {', '.join(words)}")
        if name in INDEX_NAMES:
            hints = ()  # s, x, t and the like cannot be declared
        elif name in self.scope.words:
            hints = (f"{name!r} stands alone, and is no part of an expression",)
        elif name in {"inf", "nan"}:
            hints = ("a pair that no row may see is hidden by the mask",)
        elif not close and self.scope.instead:
            hints = (self.scope.instead,)
        elif not close and name.isidentifier() and not name.startswith("__"):
            shape = ", ".join(f'"{axis}"' for axis in axes)
            hints = (f"declare it: {kind}s.{name} = {{ shape = [{shape}] }}",)
        return UnknownName(
            f"unknown name {name!r} in {self.source.label}",
            where=self.source.at(self.syntax.span(node)),
            notes=notes,
            hints=hints,
        )

    def _no_function(self, node: ast.expr, name: str) -> SyntaxRefused | UnknownName:
        if name in {*self.scope.names, *self.scope.declared}:
            axes = ", ".join(getattr(self.scope.declared.get(name), "shape", ()))
            times = name if name in {"causal", "full"} else f"{name} * (...)"
            instead = f"{name}[{axes}]" if axes else times
            return self.syntax.refuse(node, f"{name!r} is no function", f"write {instead}")
        here = sorted(self.scope.functions)
        known = name in FUNCTIONS
        close = [] if known else get_close_matches(name, here, 1, 0.7)
        told = f"{name!r} has no meaning" if known else f"unknown function {name!r}"
        kind = SyntaxRefused if known else UnknownName
        return kind(
            f"{told} in {self.source.label}",
            where=self.source.at(self.syntax.span(node)),
            notes=(f"functions here: {', '.join(here) or 'none'}",),
            hints=tuple(f"did you mean {other!r}?" for other in close),
        )

    def _arithmetic(self, op: str, left: ast.expr, right: ast.expr, span: Span) -> Expr:
        first, second = self._value(left), self._value(right)
        if op == "/" and constant_value(second) == 0:
            raise SyntaxRefused("a division by 0", where=self.source.at(span))
        if op == "**":
            exponent = constant_value(second)
            if exponent is not None and abs(exponent) > MAX_EXPONENT:
                raise LimitExceeded(
                    f"the exponent {exponent} is over {MAX_EXPONENT} in size",
                    where=self.source.at(self.syntax.span(right)),
                )
        result = Binary(op, first, second, span)
        value = constant_value(result)
        # every part is checked on the way up, so that no step multiplies two huge numbers
        if value is not None and bits(value) > MAX_BITS:
            raise LimitExceeded(
                f"a constant of {self.source.label} is over 1e{MAX_POWER_OF_TEN} in size, or "
                "under its inverse",
                where=self.source.at(span),
            )
        return result

    def _value(self, node: ast.expr) -> Expr:
        """A number, where a condition would be a slip."""
        converted = self.convert(node)
        if is_condition(converted):
            raise self.syntax.refuse(
                node,
                f"`{ast.unparse(node)}` is a condition, not a number",
                "write where(condition, a, b)",
            )
        return converted

    def _condition(self, node: ast.expr) -> Expr:
        """An operand of & | ~; a bare number there is a comparison that lost its parentheses."""
        converted = self.convert(node)
        if not is_condition(converted):
            raise self.syntax.refuse(
                node,
                f"`{ast.unparse(node)}` is not a condition",
                "put parentheses around the comparisons: (i - j < 64) & causal",
                notes=("Python's & and | bind tighter than a comparison",),
            )
        return converted

    def _comparison(self, node: ast.Compare, span: Span) -> Expr:
        sides = [node.left, *node.comparators]
        for side in sides:
            if isinstance(side, ast.BinOp) and type(side.op) in _LOGIC:
                raise self.syntax.refuse(
                    side,
                    f"`{ast.unparse(side)}` stands inside a comparison",
                    "put parentheses around the comparisons: (i - j < 64) & causal",
                    notes=("Python's & and | bind tighter than a comparison",),
                )
        values = [self._value(side) for side in sides]
        parts: list[Expr] = []
        for op, left, right in zip(node.ops, values, values[1:], strict=False):
            if type(op) not in _COMPARISONS:
                raise self.syntax.refuse(node, "`in` and `is` are not in the grammar")
            parts.append(Compare(_COMPARISONS[type(op)], left, right, span))
        result = parts[0]
        for part in parts[1:]:
            result = Logic("&", (result, part), span)
        return result

    def _call(self, node: ast.Call, span: Span) -> Expr:
        if not isinstance(node.func, ast.Name):
            raise self.syntax.refuse(node, "only the grammar's functions can be called")
        name = node.func.id
        if name not in self.scope.functions:
            raise self._no_function(node.func, name)
        if node.keywords:
            raise self.syntax.refuse(node, f"{name} takes no keywords")
        least, most = FUNCTIONS[name]
        if not least <= len(node.args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise self.syntax.refuse(node, f"{name} takes {wanted} arguments, not {len(node.args)}")
        if name == "documents":
            ids = node.args[0]
            if isinstance(ids, ast.Name) and ids.id not in {
                *self.scope.names,
                *self.scope.declared,
            }:
                raise self._unknown(ids, ids.id, ("b", "t"), "input")
            whole = None if named_tensor(ids, self.scope) else self.convert(ids)
            return Call(name, (documents_of(ids, self.syntax, self.scope, whole),), span)
        if name == "blocks":
            table, size = node.args
            taken = table_of_blocks(table, size, self._value(size), self.syntax, self.scope)
            return Call(name, taken, span)
        if name == "where":
            condition, *values = node.args
            args = (self._condition(condition), *(self._value(value) for value in values))
            return Call(name, args, span)
        return Call(name, tuple(self._value(arg) for arg in node.args), span)

    def _subscript(self, node: ast.Subscript, span: Span) -> Expr:
        if not isinstance(node.value, ast.Name):
            raise self.syntax.refuse(node, "only a declared tensor can be indexed")
        name = node.value.id
        declared = self.scope.declared.get(name)
        if declared is None and (name in self.scope.names or name in FUNCTIONS):
            raise self.syntax.refuse(node, f"{name!r} is no declared tensor")
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        letters = [letter_of(part) for part in parts]
        if declared is None:
            axes = tuple("T" if letter == OFFSET else letter for letter in letters)
            known = all(axis in _AXES for axis in axes)
            raise self._unknown(node.value, name, axes if known else ("h",))
        index = full_index(declared, tuple(letters))
        if index is None:
            note = (
                "indices are letters in the declared order; a leading b may be left out, "
                "and an axis t may be read at i or j"
            )
            if "T" in declared.shape:
                note = f"indices stand in the declared order; taps T are read at {OFFSET}"
            shape = ", ".join(declared.shape)
            read = shape.replace("T", OFFSET)
            raise self.syntax.refuse(
                node,
                f"{ast.unparse(node)} does not fit the shape [{shape}] of {name!r}",
                f"write {name}[{read}]" if declared.shape else f"write {name}",
                notes=(note,),
            )
        return Ref(name, index, span, declared)
