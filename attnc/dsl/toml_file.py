"""TOML files of variants: read with the place of every field, and written back."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attnc.dsl.check import checked
from attnc.dsl.convolution import Convolution
from attnc.dsl.convolution_check import checked_convolution
from attnc.dsl.fields import Fields
from attnc.dsl.paper import toml_lines
from attnc.dsl.sum import Sum
from attnc.dsl.terms_check import NOT_IN_A_TERM, TERM_KEYS, checked_sum, term_fields
from attnc.dsl.text import number_text, to_text
from attnc.dsl.toml_places import Places, element
from attnc.dsl.variant import Declared, Variant
from attnc.errors import FieldError, TomlError, Where, shown

KEYS = (
    "feature_map", "scale", "score", "value", "mask", "log_decay", "sink", "normalize", "chunk",
    "params", "inputs", "dim", "heads", "about", "paper",
)  # fmt: skip
LATER = {
    "dropout": "dropout is not supported: apply it to the output",
}
SUM_KEYS = ("terms", "value", "sink", "normalize", "params", "inputs", "dim", "heads",
            "about", "paper")  # fmt: skip
FILTER_KEYS = (
    "weight", "mask", "skip", "pregate", "postgate", "transforms", "outer", "inner", "params",
    "inputs", "about", "paper",
)  # fmt: skip
MAX_BYTES = 1 << 18
_NAMES = re.compile("'([^']*)'")


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
    lines = Places(text, file)
    if not document:
        raise TomlError(
            f"{file} declares no variant",
            hints=('a variant is a table: [name], then feature_map = "softmax", scale = ...',),
        )
    found: dict[str, Variant] = {}
    for name, table in document.items():
        if isinstance(table, list) and name in lines.headers:
            raise TomlError(
                f"{name!r} is a list of tables, and a variant is one",
                where=lines.header_where(name),
                hints=(f"write [{name}], with one pair of brackets",),
            )
        if not isinstance(table, Mapping):
            raise TomlError(
                f"{name!r} stands outside a table",
                where=lines.key_where("", name),
                hints=("write [name] above the fields of a variant",),
            )
        found[name] = _variant(name, table, lines)
    return found


def _variant(name: str, table: Mapping[str, Any], lines: Places) -> Variant:
    if "weight" in table:
        return _convolution(name, table, lines)
    if "terms" in table:
        return _sum(name, table, lines)
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


def _convolution(name: str, table: Mapping[str, Any], lines: Places) -> Variant:
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


def _sum(name: str, table: Mapping[str, Any], lines: Places) -> Variant:
    for key in table:
        if key in SUM_KEYS:
            continue
        if key in KEYS:
            note = f"a {key} belongs to each of the terms"
            raise FieldError(
                f"{name!r} has terms and a {key}",
                where=lines.key_where(name, key),
                notes=(note if key in TERM_KEYS else NOT_IN_A_TERM[key],),
                hints=(f"leave {key} out here",),
            )
        close = get_close_matches(key, SUM_KEYS, 1)
        raise FieldError(
            f"{name!r} has an unknown key {key!r}",
            where=lines.key_where(name, key),
            notes=(f"keys of a sum of terms are {', '.join(SUM_KEYS)}",),
            hints=(f"did you mean {close[0]!r}?",) if close else (),
        )
    listed = table["terms"]
    if not isinstance(listed, list):
        raise FieldError(
            f"terms of {name!r} is {shown(listed)}, not a list of tables",
            where=lines.key_where(name, "terms"),
            hints=(f"write [[{name}.terms]] above the fields of each",),
        )
    terms = tuple(_term(name, number, term, lines) for number, term in enumerate(listed, 1))
    rest = {key: value for key, value in table.items() if key != "terms"}
    sources = lines.sources(name, table)
    fields = Fields(name=name, feature_map=None, scale=None, sources=sources, terms=terms, **rest)
    return Sum.from_checked(checked_sum(fields))


def _term(name: str, number: int, term: object, lines: Places) -> Fields:
    """One term: a table of its own, or inline."""
    own = element(f"{name}.terms", number)
    written = term if isinstance(term, Mapping) else {}
    if own in lines.headers:
        where = {key: lines.key_where(own, key) for key in written}
        where[""] = lines.header_where(own)
        return term_fields(name, number, term, where, lines.sources(own, written))
    inline = lines.inline(name, "terms", number)
    if inline is None:
        # a text that the scan of its lines does not follow: `terms` is all that is known
        place = lines.key_where(name, "terms")
        return term_fields(name, number, term, dict.fromkeys(("", *written), place))
    sources = {
        key: lines.inline_source(inline, key, value, f"{key} of term {number} of {name}")
        for key, value in written.items()
    }
    where = {key: lines.inline_where(inline, key) for key in ("", *written)}
    return term_fields(name, number, term, where, sources)


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
    # a key of tables is a tuple there
    message = re.sub(r"\((('[^']*',? ?)+)\)", lambda key: ".".join(_NAMES.findall(key[1])), message)
    return TomlError(f"{file} is no TOML: {message}", where=where)


def dumps(variant: Variant) -> str:
    """A variant as TOML; loading it gives an equal one."""
    if isinstance(variant, Convolution):
        return _convolution_text(variant)
    lines = [*toml_lines(variant), *(() if variant.terms else _weight_lines(variant))]
    if variant.value is not None:
        lines.append(f'value = "{to_text(variant.value)}"')
    if variant.log_decay is not None:
        lines.append(f'log_decay = "{to_text(variant.log_decay)}"')
    if variant.sink is not None:
        lines.append(f'sink = "{to_text(variant.sink)}"')
    if variant.family in {"state", "pointwise"}:
        lines.append(f'normalize = "{variant.normalize}"')
    if variant.chunk != "auto":
        lines.append(f"chunk = {variant.chunk}")
    lines.extend(_declared_line("params", tensor) for tensor in variant.params)
    lines.extend(_declared_line("inputs", tensor) for tensor in variant.inputs)
    if variant.dim is not None:
        lines.append(f"dim = {{ qk = {variant.dim.qk}, v = {variant.dim.v} }}")
    if variant.heads is not None:
        lines.append(f"heads = {{ q = {variant.heads.q}, kv = {variant.heads.kv} }}")
    for term in variant.terms:
        lines += ["", f"[[{variant.name}.terms]]", *_weight_lines(term)]
        if term.factor is not None:
            lines.append(f'factor = "{to_text(term.factor)}"')
    return "\n".join(lines) + "\n"


def _weight_lines(variant: Variant) -> list[str]:
    """What a variant and a term say alike."""
    lines = [f'feature_map = "{variant.feature_map}"']
    number = variant.scale.number
    if number is None:
        lines.append('scale = "rsqrt(d)"')
    else:
        text = number_text(number)
        quoted = "/" in text
        lines.append(f'scale = "{text}"' if quoted else f"scale = {_toml_number(text)}")
    if to_text(variant.score) != "s":
        lines.append(f'score = "{to_text(variant.score)}"')
    if to_text(variant.mask) != "full":
        lines.append(f'mask = "{to_text(variant.mask)}"')
    return lines


def _convolution_text(variant: Convolution) -> str:
    lines = toml_lines(variant)
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
