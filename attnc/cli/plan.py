"""`attnc plan`: the plan of a variant, held against the compiler's own figures."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.autotune.triton_here import has_triton
from attnc.cli.facts import Facts
from attnc.cli.find import find
from attnc.cli.fit import Fitted, fit_plans
from attnc.cli.plan_json import plan_object
from attnc.cli.plan_view import print_plan
from attnc.cli.progress import Waiting
from attnc.cli.screen import console, print_json, print_warning
from attnc.cli.status import OK
from attnc.codegen.plan import Plan
from attnc.codegen.planning.planner import plans


def plan(which: str, facts: Facts, *, compiled: bool, as_json: bool) -> int:
    """Print the plan of each variant; as JSON an object, or an array for a whole file."""
    found = find(which)
    ranked = [plans(facts.request(variant)) for variant in found.variants]
    chosen = settle(ranked, compiled=compiled)
    if as_json:
        objects = [plan_object(plan, fitted) for plan, fitted in chosen]
        print_json(objects if found.whole_file else objects[0])
        return OK
    screen = console()
    for index, (plan, fitted) in enumerate(chosen):
        if index:
            screen.print()
        print_plan(screen, plan, fitted, ranked[index])
    return OK


def settle(
    ranked: Sequence[Sequence[Plan]], *, compiled: bool, jobs: int = 2
) -> list[tuple[Plan, Fitted | None]]:
    """The plan of each ranking: the first, or with `compiled` the first that the compiler takes."""
    if compiled and not has_triton():
        print_warning("Triton is not installed, so no compiler's figures stand beside the plan's")
        compiled = False
    if not compiled:
        return [(plans[0], None) for plans in ranked]
    with Waiting("compiling") as waiting:
        fitted = fit_plans(ranked, jobs=jobs, progress=waiting.update)
    return [(item.plan, item) for item in fitted]
