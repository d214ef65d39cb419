"""`attnc gallery`: a page of Markdown a variant, made from its declaration, and an index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from attnc.autotune.atomic_file import write_atomically
from attnc.cli.attention_page import AttentionPage
from attnc.cli.convolution_page import ConvolutionPage
from attnc.cli.find import find, find_all
from attnc.cli.gallery_page import Page
from attnc.cli.screen import console
from attnc.cli.status import OK
from attnc.dsl.convolution import Convolution
from attnc.dsl.variant import Variant
from attnc.errors import UsageError
from attnc.ops.shipped import shipped

INDEX = "index.md"
_FAMILIES = ("softmax", "pointwise", "state", "terms", "conv")


def gallery(which: Sequence[str], folder: Path) -> int:
    """Write the pages of the variants named, or of all shipped ones, into a folder."""
    variants = find_all(which) if which else tuple(shipped().values())
    found = [find(argument) for argument in which]
    # a page goes elsewhere than its file, so it names no folder
    files = {variant.name: Path(one.file).name for one in found for variant in one.variants}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(variants, files):
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    console().print(f"{len(variants)} pages and {INDEX} in {folder}", soft_wrap=True)
    return OK


def pages(variants: Sequence[Variant], files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each page's name and text, the index last; `files` declare the variants not shipped."""
    for variant in variants:
        yield f"{variant.name}.md", page_text(variant, files.get(variant.name, ""))
    yield INDEX, index_text(variants)


def page_of(variant: Variant, file: str = "") -> Page:
    """What a page says of a variant, which `file` declares where it is not shipped."""
    if isinstance(variant, Convolution):
        return ConvolutionPage(variant, file)
    return AttentionPage(variant, file)


def page_text(variant: Variant, file: str = "") -> str:
    """The page of one variant."""
    return _printed("gallery_page.md.jinja", page=page_of(variant, file))


def index_text(variants: Sequence[Variant]) -> str:
    """The page that lists them, softmax first."""
    listed = sorted(variants, key=lambda item: (_FAMILIES.index(item.family), item.name))
    return _printed("gallery_index.md.jinja", variants=listed)


def _printed(template: str, **facts: object) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    text = (files("attnc") / "cli" / template).read_text(encoding="utf-8")
    page = environment.from_string(text).render(**facts)
    # two blank lines stand in the emitted source alone
    return re.sub(r"\n{3,}(?!@|def |_TABLES|# [A-Z]{2} )", "\n\n", page) + "\n"
