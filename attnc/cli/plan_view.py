"""A plan on a terminal: a bar of SRAM for each pass, what fills it, the compiler's beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from rich.console import Console
from rich.text import Text

from attnc.autotune.verdict import Compiled
from attnc.cli.fit import Fitted, candidate
from attnc.codegen.plan import BufferUse, PassPlan, Plan, Workload
from attnc.codegen.planning.visibility import visible_fraction

_BAR_WIDTH = 48
# what stands beside a bar: its name, the figures
_BESIDE_BAR = 42
_SHOWN = 4
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
# one glyph a buffer as well as one colour: a bar reads without colours
_GLYPHS, _REST = "█▓▒", "·"
_PLAIN_GLYPHS, _PLAIN_REST = "#=+", "."


def print_plan(
    screen: Console, plan: Plan, fitted: Fitted | None, ranked: Sequence[Plan] | None = None
) -> None:
    """The plan; with the `ranked` it was taken from, its buffers and the other candidates too."""
    brief = ranked is None
    rest = f"{plan.form} form, {plan.backend} backend, {plan.dtype}"
    if plan.algebra.family != "conv":
        rest += f", K={plan.dims[0]} V={plan.dims[1]}"
    state = ", with its state" if plan.stateful else ""
    device = f" on {plan.device.name}: "
    screen.print(Text.assemble((plan.variant.name, "bold"), device, rest, state), soft_wrap=True)
    _fact(screen, "why", plan.form_reason)
    _fact(screen, "for", _workload_text(plan))
    if plan.backend_reason:
        _fact(screen, "code", f"{plan.backend}, {plan.backend_reason}")
    if plan.order_reason:
        _fact(screen, "order", plan.order_reason)
    if plan.otherwise:
        behind = plan.otherwise[0]
        _fact(screen, "else", f"{behind.backend}, {behind.backend_reason}: {candidate(behind)}")
    if plan.features is not None:
        widths = " + ".join(str(tile.width) for tile in plan.features.tiles)
        kept = f"{plan.features.count} features in tiles of {widths}, V = {plan.dims[1]}, fp32"
        _fact(screen, "state", kept)
    for refused in () if fitted is None else fitted.refused:
        _fact(screen, "next", f"not {refused.candidate}: {refused.reason}", "yellow")
    compiled: Sequence[Compiled | None] = (
        [None] * len(plan.passes) if fitted is None else fitted.compiled
    )
    for step, verdict in zip(plan.passes, compiled, strict=True):
        screen.print()
        _print_pass(screen, step, plan, verdict, brief=brief)
    if ranked is not None:
        screen.print()
        screen.print(f"{plan.time_us:,.1f} us at the roofline, all passes together")
        _print_rejected(screen, plan, ranked)


def gap_text(predicted: int, compiled: int) -> str:
    """How far the prediction is from the compiler's figure, as a share of that figure."""
    if predicted == compiled:
        return "exact"
    if not compiled:
        return f"{predicted:+,} B"
    return f"{predicted / compiled - 1:+.1%}"


def spilled_bytes(compiled: Compiled) -> int:
    """What a thread spills; a compiler states its stores and its loads."""
    return max(compiled.spill_stores or 0, compiled.spill_loads or 0)


def _workload_text(plan: Plan) -> str:
    work: Workload = plan.workload
    tokens = f"T={work.tq}" if work.tq == work.tk else f"TQ={work.tq} TK={work.tk}"
    heads = f"H={work.hq}" if work.hq == work.hkv else f"HQ={work.hq} HKV={work.hkv}"
    if plan.algebra.family == "conv":
        heads = f"C={work.hq}"
    visible = visible_fraction(plan.algebra.mask, work.tq, work.tk)
    return f"B={work.batch} {tokens} {heads}, {visible:.1%} of the pairs visible"


def _fact(screen: Console, name: str, text: str, style: str = "") -> None:
    screen.print(Text.assemble((f"{name:<7}", "dim"), (text, style)), soft_wrap=True)


def _print_pass(
    screen: Console, step: PassPlan, plan: Plan, compiled: Compiled | None, *, brief: bool
) -> None:
    cost, budget = step.cost, plan.device.sram_bytes
    glyphs, rest = _glyphs(screen)
    name, _, tiles = str(step).partition(": ")
    screen.print(Text.assemble((name, "bold"), f"  {tiles}"), soft_wrap=True)
    width = max(16, min(_BAR_WIDTH, screen.width - _BESIDE_BAR))
    bar = _bar([use.nbytes * use.copies for use in cost.buffers], budget, width, glyphs, rest)
    figures = f" {cost.sram_bytes:,} of {budget:,} B, {cost.sram_bytes / budget:.0%}"
    _fact_bar(screen, "sram", bar, figures)
    if compiled is not None:
        own = _bar([compiled.shared_bytes], budget, width, glyphs[:1], rest, ("default",))
        gap = gap_text(cost.sram_bytes, compiled.shared_bytes)
        _fact_bar(screen, "compiler", own, f" {compiled.shared_bytes:,} B, predicted {gap}")
    if not brief:
        marks = cycle(zip(cycle(glyphs), _COLOURS, strict=False))
        for use, (glyph, colour) in zip(cost.buffers, marks, strict=False):
            screen.print(Text.assemble(f"  {'':<9}", (glyph, colour), f" {_use_text(use)}"))
    _fact_line(screen, "regs", _register_text(cost.registers, compiled))
    _fact_line(
        screen,
        "work",
        f"{cost.hbm_bytes / 1e6:,.1f} MB of HBM, {cost.flops / 1e9:,.2f} GFLOP, "
        f"{cost.time_us:,.1f} us at the roofline",
    )
    for loop in step.kernel.every_loop:
        _fact_line(screen, "loop", f"{loop.start} .. {loop.stop}: {loop.note}")


def _fact_line(screen: Console, name: str, text: str) -> None:
    screen.print(Text.assemble((f"  {name:<9}", "dim"), text), soft_wrap=True)


def _fact_bar(screen: Console, name: str, bar: Text, figures: str) -> None:
    screen.print(Text.assemble((f"  {name:<9}", "dim"), bar, figures), soft_wrap=True)


def _register_text(predicted: int, compiled: Compiled | None) -> str:
    if compiled is None:
        return f"about {predicted} a thread"
    spilled = spilled_bytes(compiled)
    spills = f"{spilled:,} B spilled" if spilled else "nothing spilled"
    return f"{compiled.registers} a thread by the compiler, {spills}; predicted about {predicted}"


def _use_text(use: BufferUse) -> str:
    shape = ", ".join(map(str, use.shape))
    copies = f" x {use.copies} stages" if use.copies > 1 else ""
    return f"{use.name:<6} {f'[{shape}] {use.dtype}{copies}':<28} {use.nbytes * use.copies:>9,} B"


def _bar(
    parts: Sequence[int],
    budget: int,
    width: int,
    glyphs: str,
    rest: str,
    colours: tuple[str, ...] = _COLOURS,
) -> Text:
    """The parts side by side, to the scale of the budget."""
    text = Text()
    taken = drawn = 0
    for nbytes, glyph, colour in zip(parts, cycle(glyphs), cycle(colours), strict=False):
        taken += nbytes
        until = min(width, round(width * taken / budget))
        text.append(glyph * (until - drawn), colour)
        drawn = until
    text.append(rest * (width - drawn), "dim")
    return text


def _glyphs(screen: Console) -> tuple[str, str]:
    if screen.encoding.lower().startswith("utf"):
        return _GLYPHS, _REST
    return _PLAIN_GLYPHS, _PLAIN_REST


def _print_rejected(screen: Console, plan: Plan, ranked: Sequence[Plan]) -> None:
    """The candidates that fit and are slower, then those that do not fit."""
    legal = {candidate(item) for item in ranked}
    others = [item for item in plan.rejected if item.candidate != candidate(plan)]
    behind = [item for item in others if item.candidate in legal]
    unfit = [item for item in others if item.candidate not in legal]
    for title, items in (("fit and rank behind", behind), ("do not fit", unfit)):
        if not items:
            continue
        screen.print(f"{len(items)} other candidates {title}")
        for item in items[:_SHOWN]:
            text = Text.assemble(("  - ", "dim"), item.candidate, (f": {item.reason}", "dim"))
            screen.print(text, soft_wrap=True)
        if len(items) > _SHOWN:
            text = Text(f"    and {len(items) - _SHOWN} more: --json lists them all", "dim")
            screen.print(text)
