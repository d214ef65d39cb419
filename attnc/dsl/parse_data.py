"""What documents(..) and blocks(..) take: a declared tensor whole, read by its name."""

from __future__ import annotations

import ast

from attnc.dsl.expr import Expr, Ref
from attnc.dsl.limits import constant_value
from attnc.dsl.mask_data import MAX_BLOCK, MIN_BLOCK
from attnc.dsl.source import Scope
from attnc.dsl.syntax import Syntax
from attnc.dsl.variant import Declared


def named_tensor(node: ast.expr, scope: Scope) -> Declared | None:
    """The declared tensor that a bare name stands for."""
    return scope.declared.get(node.id) if isinstance(node, ast.Name) else None


def documents_of(node: ast.expr, syntax: Syntax, scope: Scope, found: Expr | None) -> Ref:
    """The tensor that says which document a token is of: by its name, or with its axes."""
    declared = named_tensor(node, scope)
    if declared is not None:
        found = Ref(declared.name, declared.shape, syntax.span(node), declared)
    if not isinstance(found, Ref) or found.index != ("b", "t"):
        raise syntax.refuse(
            node,
            f"documents takes an input of shape [b, t], not {ast.unparse(node)}",
            'declare inputs.ids = { shape = ["b", "t"] } and write documents(ids)',
        )
    return found


def table_of_blocks(
    table: ast.expr, size: ast.expr, number: Expr, syntax: Syntax, scope: Scope
) -> tuple[Expr, Expr]:
    """A table by its name, whose two last axes count blocks of the size."""
    declared = named_tensor(table, scope)
    value = constant_value(number)
    if value is None or value not in {1 << n for n in range(4, 11)}:
        raise syntax.refuse(
            size,
            f"{ast.unparse(size)} is no size of a block",
            "write blocks(table, 64)",
            notes=(f"a size is a power of two from {MIN_BLOCK} to {MAX_BLOCK:,}",),
        )
    wanted = (f"i/{value}", f"j/{value}")
    shape = () if declared is None else declared.shape
    if declared is None or shape[-2:] != wanted or not set(shape[:-2]) <= {"b", "h", "hkv"}:
        name = table.id if isinstance(table, ast.Name) else "table"
        raise syntax.refuse(
            table,
            f"blocks takes an input of shape [.., i/{value}, j/{value}], not {ast.unparse(table)}",
            f'declare inputs.{name} = {{ shape = ["h", "i/{value}", "j/{value}"] }} and write '
            f"blocks({name}, {value})",
            notes=("before the axes of blocks it may have b, h and hkv",),
        )
    return Ref(declared.name, shape, syntax.span(table), declared), number
