"""`attnc explain`: every stage of a variant as text, the same as `op.explain()`."""

from __future__ import annotations

from attnc.cli.facts import Facts
from attnc.cli.find import find
from attnc.cli.screen import console
from attnc.cli.status import OK
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.explain import explain as explain_stages


def explain(which: str, facts: Facts) -> int:
    """Print the stages of each variant, their headings in bold."""
    from rich.text import Text

    screen = console()
    for index, variant in enumerate(find(which).variants):
        if index:
            screen.print()
        for line in explain_stages(plans(facts.request(variant))[0]).splitlines():
            screen.print(Text(line, "bold" if line.startswith("== ") else ""), soft_wrap=True)
    return OK
