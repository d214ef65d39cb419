"""An expression's text and where it stands, and what it may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnc.dsl.expr import Span
from attnc.errors import Where

if TYPE_CHECKING:
    from attnc.dsl.variant import Declared


@dataclass(frozen=True, slots=True)
class Source:
    """An expression's text and where it stands, so that an error can point into it.

    `line_text` and `offset` place the text in its line of the file; without a file, `label` names
    the field, and `whole` is the place of what it is part of, where that is all that is known.
    """

    text: str
    label: str
    file: str = ""
    line: int = 0
    line_text: str = ""
    offset: int = 0
    whole: Where | None = None

    def at(self, span: Span | None) -> Where:
        """The place of a span; the whole text where there is none."""
        start, end = (0, len(self.text)) if span is None else (span.start, span.end)
        if self.file and self.line_text:
            return Where(self.line_text, self.offset + start + 1, end - start, self.file, self.line)
        if self.whole is not None:
            return self.whole
        shown = self.text.replace("\n", " ")
        return Where(shown, start + 1, end - start, label=self.label)


@dataclass(frozen=True, slots=True)
class Scope:
    """What an expression may use: index names, functions, and the declared tensors.

    `instead` says what to do where it may read no declared tensor at all. `words` may be the whole
    text. `hidden` are names that no hint offers: they are read, for a later error to refuse.
    """

    names: frozenset[str]
    functions: frozenset[str]
    declared: Mapping[str, Declared]
    instead: str = ""
    words: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()
