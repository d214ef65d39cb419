"""Where the keys of tables in an array stand: `terms = [{ ... }, { ... }]`, on any lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*|[{}\[\],=]|[^\s{}\[\],=#\"']+")


@dataclass(slots=True)
class Inline:
    """A table from `{` to `}`: the line and column of it, of each key, and of each key's value."""

    line: int
    column: int
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, tuple[int, int]] = field(default_factory=dict)


def inline_tables(lines: Sequence[str], first: int) -> list[Inline]:
    """The tables of the array whose key stands in line `first`; lines and columns count from 0."""
    found: list[Inline] = []
    opened: list[str] = []
    key, awaited = "", False
    for line, column, token in _tokens(lines, first):
        if awaited and token not in "=,}":
            found[-1].values[key], awaited = (line, column), False
            if token not in "[{":
                continue
        if token in "[{":
            opened.append(token)
            if opened == ["[", "{"]:
                found.append(Inline(line, column))
        elif token in "]}":
            if opened:
                opened.pop()
            if not opened:
                return found
        elif token == "=":
            awaited = opened == ["[", "{"]
        elif opened == ["[", "{"] and token != ",":
            key = token.strip("\"'")
            found[-1].keys.setdefault(key, (line, column))
    return found


def _tokens(lines: Sequence[str], first: int) -> Iterator[tuple[int, int, str]]:
    for line in range(first, len(lines)):
        # the array's own key and its equals sign come first
        start = lines[line].find("=") + 1 if line == first else 0
        for match in _TOKEN.finditer(lines[line], start):
            if not match[0].startswith("#"):
                yield line, match.start(), match[0]
