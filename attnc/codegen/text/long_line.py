"""A line of over a hundred columns -> several, where a formatter would break it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COLUMNS = 100
_STATEMENT = re.compile(r"( +)(\w+ = )(.+)\Z")
_LOAD = re.compile(r"([tg]l)\.load\((.+)\)(\.to\([\w.]+\))\Z")
# what binds least comes first
_OPERATORS = ("|", "&", "+", "*")


def broken(text: str) -> str:
    """The text with each of its assignments on lines of at most a hundred columns.

    before    name = tl.load(address).to(tl.float32)        name = first | second
    after     name = tl.load(                               name = (
                  address,                                      first
              ).to(tl.float32)                                  | second
                                                            )
    """
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line))


def _pieces(line: str) -> Iterator[str]:
    statement = _STATEMENT.match(line) if len(line) > _COLUMNS else None
    if statement is None:
        yield line
        return
    indent, target, value = statement.groups()
    load = _LOAD.match(value)
    if load is not None:
        yield f"{indent}{target}{load[1]}.load("
        yield f"{indent}    {load[2]},"
        yield f"{indent}){load[3]}"
        return
    operands = _operands(value)
    head = f"{indent}{target}{operands[0]} {operands[-1][:3]}"
    if len(operands) == 2 and head.endswith("(") and len(head) <= _COLUMNS:
        # two operands: the brackets of the second take the break
        yield head
        yield f"{indent}    {operands[1][3:-1]}"
        yield f"{indent})"
        return
    tail = f"{indent}) {operands[-1]}"
    if len(operands) == 2 and _bracketed(operands[0]) and len(tail) <= _COLUMNS:
        # what stands before the second is too long for that: the brackets of the first take it
        yield f"{indent}{target}("
        yield f"{indent}    {operands[0][1:-1]}"
        yield tail
        return
    yield f"{indent}{target}("
    fits = len(indent) + 4 + len(value) <= _COLUMNS
    for part in (value,) if fits else operands:
        yield f"{indent}    {part}"
    yield f"{indent})"


def _operands(value: str) -> list[str]:
    """The operands of what binds least outside of brackets, each behind its operator."""
    for operator in _OPERATORS:
        places = [at for at in _outside(value) if value[at : at + 3] == f" {operator} "]
        if places:
            ends = [*places[1:], len(value)]
            rest = [value[at + 1 : end] for at, end in zip(places, ends, strict=True)]
            return [value[: places[0]], *rest]
    return [value]


def _bracketed(operand: str) -> bool:
    """Whether one pair of brackets holds all of it."""
    return operand.startswith("(") and len(operand) - 1 == next(_outside(operand))


def _outside(value: str) -> Iterator[int]:
    """The places that stand in no bracket."""
    depth = 0
    for at, character in enumerate(value):
        depth += (character in "([") - (character in ")]")
        if not depth:
            yield at
