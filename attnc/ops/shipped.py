"""The variants that come with the package, read from the TOML files beside this one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from attnc.dsl.convolution import Convolution
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant


@cache
def shipped() -> dict[str, Variant]:
    """Every shipped variant by name, in alphabetical order of the files."""
    folder = files("attnc") / "ops" / "variants"
    found: dict[str, Variant] = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            found.update(loads(entry.read_text(encoding="utf-8"), file=entry.name))
    return found


def attentions() -> dict[str, Variant]:
    """The shipped variants of q, k and v."""
    return {name: item for name, item in shipped().items() if not isinstance(item, Convolution)}


def convolutions() -> dict[str, Convolution]:
    """The shipped variants of v alone."""
    return {name: item for name, item in shipped().items() if isinstance(item, Convolution)}
