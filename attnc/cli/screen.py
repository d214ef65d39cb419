"""What the commands write to: consoles, JSON and errors. rich is imported by the first of them."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from attnc.errors import AttncError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# where the output is no terminal, and so has no width of its own
_WIDTH = 100


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: no markup, nothing highlighted."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: object) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_error(error: AttncError) -> None:
    """The rendered error on standard error, its first line in red where there are colours."""
    headline, *rest = error.render().split("\n")
    _print_note(headline, "bold red", "".join(f"\n{line}" for line in rest))


def print_warning(message: str) -> None:
    """One warning on standard error."""
    _print_note(f"warning: {message}", "yellow")


def table(*headings: str, figures: tuple[str, ...] = ()) -> Table:
    """A table without lines; `figures` are the last columns, aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for heading in figures:
        made.add_column(heading, justify="right")
    return made


def _print_note(headline: str, style: str, rest: str = "") -> None:
    if not sys.stderr.isatty():
        # exactly the text: a tab stays a tab, and nothing is wrapped
        sys.stderr.write(f"{headline}{rest}\n")
        return
    from rich.text import Text

    console(stderr=True).print(Text.assemble((headline, style), rest), soft_wrap=True)
