"""What was written for one variant, before anything is read."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from attnc.dsl.expr import Expr, lift
from attnc.dsl.source import Source
from attnc.dsl.text import to_text
from attnc.errors import FieldError

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
# a filter's skip is called D wherever there is one
_FILTER_TENSOR = re.compile(r"[A-Za-z][a-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Fields:
    """What was written for one variant; `sources` places the fields in a file.

    `terms` are those of a sum, each of the fields of a weight.
    """

    name: str
    feature_map: object
    scale: object
    score: object = "s"
    value: object = "v"
    mask: object = "full"
    log_decay: object = None
    sink: object = None
    normalize: object = None
    chunk: object = "auto"
    params: object = ()
    inputs: object = ()
    dim: object = None
    heads: object = None
    about: object = ""
    paper: object = None
    weight: object = None
    skip: object = None
    pregate: object = None
    postgate: object = None
    transforms: object = ()
    outer: object = None
    inner: object = None
    factor: object = None
    terms: tuple[Fields, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)

    def source(self, name: str, text: str) -> Source:
        """Where a field's text stands."""
        found = self.sources.get(name)
        if found is not None and found.text == text:
            return found
        return Source(text, f"{name} of {self.name!r}")

    def refuse(
        self,
        name: str,
        message: str,
        *,
        notes: tuple[str, ...] = (),
        hints: tuple[str, ...] = (),
    ) -> FieldError:
        """The error of a whole field."""
        source = self.sources.get(name)
        return FieldError(
            message, where=None if source is None else source.at(None), notes=notes, hints=hints
        )


def text_of(value: object) -> str:
    """A field as text, for the place in an error."""
    return to_text(value) if isinstance(value, Expr) else str(value)


def check_name(fields: Fields, name: object, what: str) -> None:
    """Refuse a name that cannot stand in emitted source."""
    filtered = fields.weight is not None and what != "variant"
    pattern = _FILTER_TENSOR if filtered else _NAME
    if not isinstance(name, str) or not pattern.match(name) or keyword.iskeyword(name):
        word = isinstance(name, str) and keyword.iskeyword(name)
        raise fields.refuse(
            "" if what == "variant" else f"{what}s.{name}",
            f"{name!r} is no name for {'an' if what == 'input' else 'a'} {what}",
            notes=("a name is a lowercase identifier: it becomes part of the emitted source",),
            hints=(
                "choose another name: this is a word of Python's"
                if word
                else "use a to z, 0 to 9 and _, a letter first",
            ),
        )
    limit = 40 if what == "variant" else 24
    if len(name) > limit:
        raise FieldError(f"the {what} name {name!r} has {len(name)} characters, at most {limit}")


def lifted(value: Expr) -> Expr:
    """A declared tensor without axes as the expression it is."""
    return lift(value)
