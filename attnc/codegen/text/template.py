"""The templates: found beside the package, and printed with the facts that they are given."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2


@cache
def environment() -> jinja2.Environment:
    """Every template by its name; a fact that is missing is an error."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters["quote"] = lambda text: f'"{text}"'
    return made


def _read_template(name: str) -> str:
    return (files("attnc") / "templates" / name).read_text(encoding="utf-8")


def render_text(template: str, **facts: object) -> str:
    """A template that is no kernel, with what it prints."""
    return environment().get_template(template).render(**facts)
