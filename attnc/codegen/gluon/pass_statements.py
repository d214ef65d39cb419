"""Nodes of a backward's passes as statements of Gluon, and functions with the sizes they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from attnc.codegen.gluon.statement import Layouts, gluon_lines, gluon_text
from attnc.codegen.graph import Node
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import Plan
from attnc.codegen.text.statement import Statement, statement

# what the passes over pairs leave to the copy engine
COPIED = ("q", "k", "v", "do")
_WORD = re.compile(r"\w+")
_POINTER = re.compile(r"p_(\w+) = ")


def statements(
    plan: Plan, kernel: Kernel, nodes: Iterable[Node], layouts: Layouts, left: frozenset[str],
    *, masked: bool = False,
) -> tuple[Statement, ...]:  # fmt: skip
    """Nodes as Gluon prints them, but for those `left` to the copy engine: buffers and outputs."""
    found = []
    for node in nodes:
        if node.op in {"load", "store"} and (node.buffer in left or node.tensor in left):
            continue
        own = statement(plan, kernel, node, masked=masked)
        wide = bool(layouts.wide) and node.shape[1:] in {("BK",), ("BV",)}
        pointers = {*COPIED, *left}
        lines = [line for line in own.lines if _pointer(line) not in pointers]
        found.append(
            replace(
                own,
                lines=gluon_lines(tuple(lines), layouts, accumulator=wide),
                value=gluon_text(own.value, layouts, accumulator=wide),
                address=gluon_text(own.address, layouts, accumulator=wide),
                guard=gluon_text(own.guard, layouts, accumulator=wide),
            )
        )
    return tuple(found)


def without_line(statement: Statement, line: str) -> Statement:
    """The statement less one of its lines."""
    return replace(statement, lines=tuple(own for own in statement.lines if own != line))


def _pointer(line: str) -> str:
    """The tensor whose pointer a line moves; empty for other lines."""
    found = _POINTER.match(line)
    return found[1] if found else ""


def constants_stated(text: str, constants: Mapping[str, str]) -> str:
    """Each function with the sizes and layouts that it names, stated where its body begins."""
    found = []
    for function in re.split(r"(?=^@gluon\.jit)", text, flags=re.MULTILINE):
        signature, colon, body = function.partition("):\n")
        used = set(_WORD.findall(re.sub(r"#.*", "", body)))
        lines: list[str] = []
        for name, value in reversed(list(constants.items())):
            if name in used:
                used |= set(_WORD.findall(value))
                lines.insert(0, f"    {name}: gl.constexpr = {value}\n")
        found.append(f"{signature}{colon}{''.join(lines)}{body}")
    return "".join(found)
