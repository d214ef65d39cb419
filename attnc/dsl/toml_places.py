"""Where the keys of a TOML text stand, so that an error can point at them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attnc.dsl.inline_tables import Inline, inline_tables
from attnc.dsl.source import Source
from attnc.errors import Where

MAX_LINE = 4000
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?\Z")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=\s*(.*)\Z")


def element(table: str, number: int) -> str:
    """The name of element `number` of an array of tables, counted from 1."""
    return f"{table}[{number}]"


class Places:
    """Where each key of each table stands; a value on its own line keeps its column."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.headers: dict[str, int] = {}
        self.keys: dict[tuple[str, str], int] = {}
        table = ""
        counts: dict[str, int] = {}
        for number, line in enumerate(self.lines):
            if len(line) > MAX_LINE:
                continue  # the patterns below are slow on a hostile line
            header = _HEADER.match(line)
            if header:
                table = plain_key(header.group(2))
                if header.group(1) == "[[":
                    # the elements of an array of tables are told apart by number
                    count = counts[table] = counts.get(table, 0) + 1
                    self.headers.setdefault(table, number)
                    table = element(table, count)
                self.headers.setdefault(table, number)
                continue
            key = _KEY.match(line)
            if key:
                self.keys.setdefault((table, plain_key(key.group(1))), number)

    def _find(self, table: str, key: str) -> int | None:
        """The line of a key, of a dotted key under it, or of a table of that name."""
        if (table, key) in self.keys:
            return self.keys[table, key]
        for (owner, name), number in self.keys.items():
            if owner == table and name.startswith(f"{key}."):
                return number
            if f"{owner}.{name}".removeprefix(".") == f"{table}.{key}":
                return number
        return self.headers.get(f"{table}.{key}" if table else key)

    def header_where(self, table: str) -> Where | None:
        """The line of a table's header."""
        number = self.headers.get(table)
        if number is None:
            return None
        line = self.lines[number]
        return Where(line, 1, len(line.rstrip()), self.file, number + 1)

    def key_where(self, table: str, key: str) -> Where | None:
        """The line of a key, the caret under its name."""
        number = self._find(table, key)
        if number is None:
            return self.header_where(table)
        line = self.lines[number]
        start = line.find(key)
        return Where(line, max(start, 0) + 1, len(key), self.file, number + 1)

    def sources(self, table: str, fields: Mapping[str, object]) -> dict[str, Source]:
        """The text of each field and its place."""
        header = self.header_where(table)
        found = {"": Source(table, "name", whole=header)} if header else {}
        for key, value in fields.items():
            found[key] = self._source(table, key, value)
            if key in {"params", "inputs"} and isinstance(value, Mapping):
                for name, facts in value.items():
                    found[f"{key}.{name}"] = self._source(table, f"{key}.{name}", facts)
        return found

    def _source(self, table: str, key: str, value: object) -> Source:
        text = value if isinstance(value, str) else str(value)
        label = f"{key} of {table!r}"
        number = self._find(table, key)
        if number is None:
            return Source(text, label)
        line = self.lines[number]
        after = line.find("=") + 1
        offset = line.find(text, after) if isinstance(value, str) else -1
        if offset < 0 and isinstance(value, str):
            # a text with escapes or of several lines stands nowhere as it is
            return Source(text, f"{label} ({self.file}:{number + 1})")
        if offset < 0:
            # the written value: what stands after the equals sign
            offset = after + len(line[after:]) - len(line[after:].lstrip())
            text = line[offset:].rstrip()
        return Source(text, label, self.file, number + 1, line, offset)

    def inline(self, table: str, key: str, number: int) -> Inline | None:
        """Where element `number`, counted from 1, of an array of inline tables stands."""
        first = self._find(table, key)
        if first is None:
            return None
        # the pattern of a token is slow on a hostile line too
        lines = [line if len(line) <= MAX_LINE else "" for line in self.lines]
        tables = inline_tables(lines, first)
        return tables[number - 1] if number <= len(tables) else None

    def inline_where(self, inline: Inline, key: str) -> Where:
        """The line of a key of an inline table, the caret under its name; of the table itself."""
        line, column = inline.keys.get(key, (inline.line, inline.column))
        length = len(key) if key in inline.keys else 1
        return Where(self.lines[line], column + 1, length, self.file, line + 1)

    def inline_source(self, inline: Inline, key: str, value: object, label: str) -> Source:
        """The text of a value of an inline table and its place, of its key where it has escapes."""
        text = str(value)
        line, column = inline.values.get(key, (inline.line, inline.column))
        offset = self.lines[line].find(text, column)
        if offset < 0:
            return Source(text, label, whole=self.inline_where(inline, key))
        return Source(text, label, self.file, line + 1, self.lines[line], offset)


def plain_key(key: str) -> str:
    """A dotted key without quotes and white space."""
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
