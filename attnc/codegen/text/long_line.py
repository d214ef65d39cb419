"""A line of over a hundred columns -> several, where a formatter would break it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COLUMNS = 100
_STATEMENT = re.compile(r"( +)(\w+ = )(.+)\Z")
_LOAD = re.compile(r"([tg]l)\.load\((.+)\)(\.to\([\w.]+\))\Z")
# what binds least comes first
_OPERATORS = (("|",), ("&",), ("+", "-"), ("*", "/"))


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
    for before, inner, after in _opened(operands):
        lines = [f"{indent}{target}{before}", *_inside(inner, indent), f"{indent}{after}"]
        if max(map(len, lines)) <= _COLUMNS:
            yield from lines
            return
    yield f"{indent}{target}("
    yield from _inside(value, indent)
    yield f"{indent})"


def _inside(value: str, indent: str) -> Iterator[str]:
    """What stands in brackets that begin at an indent: on one line, or an operand a line."""
    indent = f"{indent}    "
    operands = [value] if len(indent) + len(value) <= _COLUMNS else _operands(value)
    for operand in operands:
        if len(indent) + len(operand) <= _COLUMNS:
            yield f"{indent}{operand}"
            continue
        for before, inner, after in _opened([operand]):
            yield f"{indent}{before}"
            yield from _inside(inner, indent)
            yield f"{indent}{after}"
            break
        else:
            yield f"{indent}{operand}"


def _operands(value: str) -> list[str]:
    """The operands of what binds least outside of brackets, each behind its operator."""
    for level in _OPERATORS:
        marks = {f" {operator} " for operator in level}
        places = [at for at in _outside(value) if value[at : at + 3] in marks]
        if places:
            ends = [*places[1:], len(value)]
            rest = [value[at + 1 : end] for at, end in zip(places, ends, strict=True)]
            return [value[: places[0]], *rest]
    return [value]


def _opened(operands: list[str]) -> Iterator[tuple[str, str, str]]:
    """The text cut at the brackets that end the last of two operands, then of the first."""
    if len(operands) > 2:
        return
    *before, last = operands
    if last.endswith(")"):
        start = _start(last)
        yield " ".join([*before, last[: start + 1]]), last[start + 1 : -1], ")"
    for first in before:
        # a formatter opens no call in front of a plain name
        bracket = first.find("(") if first.endswith(")") else -1
        opens = bracket == 0 or (bracket > 0 and last.endswith(")"))
        if opens and _start(first) == bracket:
            yield first[: bracket + 1], first[bracket + 1 : -1], f") {last}"


def _start(value: str) -> int:
    """Where the bracket opens that closes at the end."""
    depth = 0
    for at in reversed(range(len(value))):
        depth += (value[at] in ")]") - (value[at] in "([")
        if not depth:
            return at
    raise AssertionError(f"{value!r} closes more brackets than it opens")


def _outside(value: str) -> Iterator[int]:
    """The places that stand in no bracket."""
    depth = 0
    for at, character in enumerate(value):
        depth += (character in "([") - (character in ")]")
        if not depth:
            yield at
