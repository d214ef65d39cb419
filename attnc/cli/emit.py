"""`attnc emit`: the module of the first-ranked plan; the same line gives the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from attnc.autotune.atomic_file import write_atomically
from attnc.cli.facts import Facts
from attnc.cli.find import find
from attnc.cli.status import OK
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.errors import UsageError


def emit(which: str, facts: Facts, output: Path | None) -> int:
    """Print the module, or write it to a file."""
    source = render(plans(facts.request(find(which).one))[0]).encode("utf-8")
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(source)
        return OK
    try:
        write_atomically(output, source)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    return OK
