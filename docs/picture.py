"""Draws docs/plan.svg, the plan in the README: `make picture`."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from attnc.cli.facts import Facts
from attnc.cli.plan import settle
from attnc.cli.plan_view import print_plan
from attnc.codegen.planning.planner import plans
from attnc.ops.shipped import shipped


def main() -> None:
    """Plan Based for an H100, hold it against the compiler, and keep what is printed as SVG."""
    ranked = plans(Facts(device="h100", dtype="bf16").request(shipped()["based"]))
    ((plan, fitted),) = settle([ranked], compiled=True)
    screen = Console(
        record=True, width=120, file=io.StringIO(), force_terminal=True, highlight=False,
        markup=False, emoji=False,
    )  # fmt: skip
    print_plan(screen, plan, fitted, ranked)
    picture = screen.export_svg(title="attnc plan based --device h100 --dtype bf16")
    # a reader's own monospace: no font is fetched from anywhere
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("font-family: Fira Code, monospace", "font-family: monospace")
    Path(__file__).with_name("plan.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
