"""TOML files of variants: read with the place of every field, and written back."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from attnc.dsl.check import checked
from attnc.dsl.convolution import Convolution
from attnc.dsl.convolution_check import checked_convolution
from attnc.dsl.fields import Fields
from attnc.dsl.source import Source
from attnc.dsl.text import number_text, to_text
from attnc.dsl.variant import Declared, Variant
from attnc.errors import FieldError, TomlError, Where

KEYS = (
    "feature_map", "scale", "score", "value", "mask", "log_decay", "sink", "normalize", "chunk",
    "params", "inputs", "dim", "heads",
)  # fmt: skip
LATER = {
    "dropout": "dropout is not supported: apply it to the output",
    "terms": "sums of terms are not supported yet: declare one weight",
}
FILTER_KEYS = (
    "weight", "mask", "skip", "pregate", "postgate", "transforms", "params", "inputs",
)  # fmt: skip
MAX_BYTES = 1 << 18
MAX_LINE = 4000
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?\Z")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=\s*(.*)\Z")


def load(path: str | os.PathLike[str]) -> dict[str, Variant]:
    """Every variant of a TOML file by name, in the file's order.

    Raises:
        TomlError: no such file, no TOML, or no variant in it.
        DeclarationError: a variant that is refused.
    """
    shown = os.fspath(path)
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise TomlError(f"{shown} is over {MAX_BYTES:,} bytes")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TomlError(f"cannot read {shown}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TomlError(f"{shown} is no UTF-8 text") from None
    return loads(text, file=shown)


def loads(text: str, *, file: str = "<text>") -> dict[str, Variant]:
    """Every variant of a TOML text; `file` names it in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(text, file, error) from None
    except RecursionError:
        raise TomlError(f"{file} is nested too deeply") from None
    except ValueError:
        # an integer of thousands of digits, which Python does not read
        raise TomlError(f"{file} holds a number that is too long") from None
    lines = _Lines(text, file)
    if not document:
        raise TomlError(
            f"{file} declares no variant",
            hints=('a variant is a table: [name], then feature_map = "softmax", scale = ...',),
        )
    found: dict[str, Variant] = {}
    for name, table in document.items():
        if not isinstance(table, Mapping):
            raise TomlError(
                f"{name!r} stands outside a table",
                where=lines.key_where("", name),
                hints=("write [name] above the fields of a variant",),
            )
        found[name] = _variant(name, table, lines)
    return found


def _variant(name: str, table: Mapping[str, object], lines: _Lines) -> Variant:
    if "weight" in table:
        return _convolution(name, table, lines)
    for key in table:
        if key in KEYS:
            continue
        where = lines.key_where(name, key)
        if key in FILTER_KEYS:
            raise FieldError(
                f"{name!r} has a {key} and no weight",
                where=where,
                notes=("it belongs to a convolution, whose weight is a function of i - j",),
                hints=('add weight = "w[c, i-j]", and leave feature_map and scale out',),
            )
        if key in LATER:
            raise FieldError(f"{name!r} has the key {key!r}: {LATER[key]}", where=where)
        close = get_close_matches(key, KEYS, 1)
        raise FieldError(
            f"{name!r} has an unknown key {key!r}",
            where=where,
            notes=(f"keys are {', '.join(KEYS)}",),
            hints=(f"did you mean {close[0]!r}?",) if close else (),
        )
    for required, hint in (
        ("feature_map", 'feature_map = "softmax"'),
        ("scale", 'scale = "rsqrt(d)", or scale = 1.0'),
    ):
        if required not in table:
            raise FieldError(
                f"{name!r} has no {required}",
                where=lines.header_where(name),
                notes=("a scale is never assumed: nothing is scaled twice, or not at all",)
                if required == "scale"
                else (),
                hints=(f"add {hint}",),
            )
    sources = lines.sources(name, table)
    fields = Fields(name=name, sources=sources, **{key: table[key] for key in KEYS if key in table})
    return Variant.from_checked(checked(fields))


def _convolution(name: str, table: Mapping[str, object], lines: _Lines) -> Variant:
    for key in table:
        if key in FILTER_KEYS:
            continue
        close = get_close_matches(key, FILTER_KEYS, 1)
        if key in KEYS:
            raise FieldError(
                f"{name!r} has a weight and a {key}",
                where=lines.key_where(name, key),
                notes=("q and k take no part in a convolution: its weight depends on i - j alone",),
                hints=(f"leave {key} out, or the weight",),
            )
        raise FieldError(
            f"{name!r} has an unknown key {key!r}",
            where=lines.key_where(name, key),
            notes=(f"keys of a convolution are {', '.join(FILTER_KEYS)}",),
            hints=(f"did you mean {close[0]!r}?",) if close else (),
        )
    fields = Fields(
        name=name, feature_map=None, scale=None, sources=lines.sources(name, table), **dict(table)
    )
    return Convolution.from_checked(checked_convolution(fields))


def _no_toml(text: str, file: str, error: tomllib.TOMLDecodeError) -> TomlError:
    message = str(error)
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    where = None
    if match:
        line, column = int(match.group(1)), int(match.group(2))
        source = text.splitlines()
        shown = source[line - 1] if line <= len(source) else ""
        where = Where(shown[:200], min(column, 200), 1, file, line)
        message = message[: match.start()].strip()
    return TomlError(f"{file} is no TOML: {message}", where=where)


class _Lines:
    """Where each key of each table stands; a value on its own line keeps its column."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.headers: dict[str, int] = {}
        self.keys: dict[tuple[str, str], int] = {}
        table = ""
        for number, line in enumerate(self.lines):
            if len(line) > MAX_LINE:
                continue  # the patterns below are slow on a hostile line
            header = _HEADER.match(line)
            if header:
                table = _plain(header.group(1))
                self.headers.setdefault(table, number)
                continue
            key = _KEY.match(line)
            if key:
                self.keys.setdefault((table, _plain(key.group(1))), number)

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
        found: dict[str, Source] = {}
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


def _plain(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def dumps(variant: Variant) -> str:
    """A variant as TOML; loading it gives an equal one."""
    if isinstance(variant, Convolution):
        return _convolution_text(variant)
    lines = [f"[{variant.name}]", f'feature_map = "{variant.feature_map}"']
    number = variant.scale.number
    if number is None:
        lines.append('scale = "rsqrt(d)"')
    else:
        text = number_text(number)
        quoted = "/" in text
        lines.append(f'scale = "{text}"' if quoted else f"scale = {_toml_number(text)}")
    if to_text(variant.score) != "s":
        lines.append(f'score = "{to_text(variant.score)}"')
    if variant.value is not None:
        lines.append(f'value = "{to_text(variant.value)}"')
    if to_text(variant.mask) != "full":
        lines.append(f'mask = "{to_text(variant.mask)}"')
    if variant.log_decay is not None:
        lines.append(f'log_decay = "{to_text(variant.log_decay)}"')
    if variant.sink is not None:
        lines.append(f'sink = "{to_text(variant.sink)}"')
    if variant.family == "state":
        lines.append(f'normalize = "{variant.normalize}"')
    if variant.chunk != "auto":
        lines.append(f"chunk = {variant.chunk}")
    lines.extend(_declared_line("params", tensor) for tensor in variant.params)
    lines.extend(_declared_line("inputs", tensor) for tensor in variant.inputs)
    if variant.dim is not None:
        lines.append(f"dim = {{ qk = {variant.dim.qk}, v = {variant.dim.v} }}")
    if variant.heads is not None:
        lines.append(f"heads = {{ q = {variant.heads.q}, kv = {variant.heads.kv} }}")
    return "\n".join(lines) + "\n"


def _convolution_text(variant: Convolution) -> str:
    lines = [f"[{variant.name}]"]
    lines.extend(f'{field} = "{to_text(ref)}"' for field, ref in variant.filter.refs)
    lines.append(f'mask = "{to_text(variant.mask)}"')
    if variant.filter.transforms:
        texts = ", ".join(f'"{transform}"' for transform in variant.filter.transforms)
        lines.append(f"transforms = [{texts}]")
    lines.extend(_declared_line("params", tensor) for tensor in variant.params)
    lines.extend(_declared_line("inputs", tensor) for tensor in variant.inputs)
    return "\n".join(lines) + "\n"


def _toml_number(text: str) -> str:
    return text if "." in text or "e" in text else f"{text}.0"


def _declared_line(table: str, tensor: Declared) -> str:
    letters = ", ".join(f'"{letter}"' for letter in tensor.shape)
    grad = ", grad = true" if tensor.grad else ""
    return f"{table}.{tensor.name} = {{ shape = [{letters}]{grad} }}"
