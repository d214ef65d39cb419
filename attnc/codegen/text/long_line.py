"""A line of over a hundred columns -> several, where a formatter would break it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COLUMNS = 100
_STATEMENT = re.compile(r"( +)(\w+ = )(.+)\Z")
_LOAD = re.compile(r"([tg]l)\.load\((.+)\)(\.to\([\w.]+\))\Z")
# an operand up to its bracket: (..), or a call
_OPENING = re.compile(r"([|&+*] )?[\w.]*\(")
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
    # one operand, or two: the brackets of the last take the break, or those of the first
    for opened in _opened(operands):
        lines = [f"{indent}{target}{opened[0]}", f"{indent}    {opened[1]}", f"{indent}{opened[2]}"]
        if max(map(len, lines)) <= _COLUMNS:
            yield from lines
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


def _opened(operands: list[str]) -> Iterator[tuple[str, str, str]]:
    """The text cut at the brackets that end the last of two operands, then of the first."""
    if len(operands) > 2:
        return
    for number in (len(operands) - 1, 0):
        before, operand, after = operands[:number], operands[number], operands[number + 1 :]
        start = _OPENING.match(operand)
        if start is None or (after and start[0] != "(" and not after[0].endswith(")")):
            # a formatter opens no call in front of a plain name
            continue
        bracket = start.end() - 1
        if next(_outside(operand[bracket:])) == len(operand) - 1 - bracket:
            yield " ".join([*before, start[0]]), operand[bracket + 1 : -1], " ".join([")", *after])


def _outside(value: str) -> Iterator[int]:
    """The places that stand in no bracket."""
    depth = 0
    for at, character in enumerate(value):
        depth += (character in "([") - (character in ")]")
        if not depth:
            yield at
