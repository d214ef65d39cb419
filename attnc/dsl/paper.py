"""Where a variant comes from: a sentence about it, and the paper that describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from attnc.dsl.fields import Fields
from attnc.dsl.variant import Variant
from attnc.errors import shown

_ARXIV = re.compile(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}\Z")
_KEYS = ("title", "by", "arxiv")
_SHOWN = 'paper = { title = "Mistral 7B", by = "Jiang et al., 2023", arxiv = "2310.06825" }'
MAX_ABOUT = 400


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper on arXiv; `by` names authors and year as one would cite them, and may be empty."""

    title: str
    arxiv: str
    by: str = ""

    @property
    def url(self) -> str:
        """Where it is read."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def __str__(self) -> str:
        by = f"{self.by}: " if self.by else ""
        return f"{by}{self.title} (arXiv {self.arxiv})"


def read_about(fields: Fields) -> str:
    """A sentence or two, on one line; empty where none was written."""
    value = fields.about
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_ABOUT:
        raise fields.refuse(
            "about",
            f"about of {fields.name!r} is {shown(value)}",
            notes=(f"it says what the variant is, on one line of at most {MAX_ABOUT} characters",),
        )
    return value


def read_paper(fields: Fields) -> Paper | None:
    """The paper as a table of its title, its authors and its number on arXiv."""
    value = fields.paper
    if value is None or isinstance(value, Paper):
        return value
    if not isinstance(value, Mapping):
        raise fields.refuse(
            "paper",
            f"paper of {fields.name!r} is {shown(value)}, no table",
            hints=(f"write {_SHOWN}",),
        )
    unknown = sorted(set(value) - set(_KEYS))
    if unknown:
        raise fields.refuse(
            "paper",
            f"paper of {fields.name!r} has an unknown key {unknown[0]!r}",
            notes=(f"a paper has {', '.join(_KEYS)}",),
        )
    for key in ("title", "arxiv"):
        if not value.get(key):
            raise fields.refuse(
                "paper", f"paper of {fields.name!r} has no {key}", hints=(f"write {_SHOWN}",)
            )
    for key in _KEYS:
        if not isinstance(value.get(key, ""), str) or not value.get(key, "").isprintable():
            raise fields.refuse(
                "paper", f"{key} of the paper of {fields.name!r} is no line of text"
            )
    if not _ARXIV.match(value["arxiv"]):
        raise fields.refuse(
            "paper",
            f"arxiv of the paper of {fields.name!r} is {value['arxiv']!r}",
            notes=("a number on arXiv is the year, the month, a point and four or five digits",),
            hints=('write arxiv = "2307.08691"',),
        )
    return Paper(value["title"], value["arxiv"], value.get("by", ""))


def toml_lines(variant: Variant) -> list[str]:
    """A variant's header, and the lines of what is no part of its meaning."""
    lines = [f"[{variant.name}]"]
    if variant.about:
        lines.append(f"about = {_quoted(variant.about)}")
    if variant.paper is not None:
        facts = ((key, getattr(variant.paper, key)) for key in _KEYS)
        parts = (f"{key} = {_quoted(value)}" for key, value in facts if value)
        lines.append(f"paper = {{ {', '.join(parts)} }}")
    return lines


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
