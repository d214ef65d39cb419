"""The planner's SRAM held against the compiler's, over variants that nobody chose.

Each kernel of a drawn plan is compiled without a GPU, and every gap is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnc.autotune.candidates import Candidate, draw_candidates
from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.module_cache import store_module
from attnc.autotune.target import Target
from attnc.autotune.triton_here import require_triton
from attnc.autotune.verdict import Compiled, Verdict
from attnc.autotune.verdict_cache import triton_version
from attnc.codegen.sram.peak import Release, sram_of
from attnc.codegen.text.render import render

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WITHIN = 0.10


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel: bytes of SRAM predicted and compiled, and the gap between them.

    `compiled` and `gap` are None where the compiler refuses the kernel; that is never `within`.
    """

    variant: str
    kernel: str
    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    device: str
    dtype: str
    dims: tuple[int, int]
    predicted: int
    compiled: int | None
    gap: float | None
    within: bool


def draw_table(
    *,
    devices: Sequence[str] = ("a100", "h100"),
    dtypes: Sequence[str] = ("bf16", "fp32"),
    count: int = 10,
    seed: int = 0,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Predicted and compiled SRAM of at least `count` kernels a device and dtype."""
    require_triton("compiling kernels")
    drawn = [
        candidate
        for device in devices
        for dtype in dtypes
        for candidate in draw_candidates(device, dtype, count=count, seed=seed)
    ]
    release = installed_release()
    with CompilePool(jobs) as pool:
        verdicts = pool.map([_job(candidate) for candidate in drawn], progress)
    return [_row(*pair, release) for pair in zip(drawn, verdicts, strict=True)]


def installed_release() -> Release:
    """The release of Triton that compiles here."""
    major, minor = triton_version().split(".")[:2]
    return int(major), int(minor)


def _job(candidate: Candidate) -> CompileJob:
    plan = candidate.plan
    path = store_module(render(plan), f"{plan.variant.name}_{plan.form}")
    return CompileJob(path, candidate.kernel, Target.parse(plan.device.target))


def _row(candidate: Candidate, verdict: Verdict, release: Release) -> Row:
    plan, step = candidate.plan, candidate.step
    predicted = sram_of(
        step.kernel.graph,
        step.tile,
        io=plan.dtype,
        num_warps=step.num_warps,
        num_stages=step.num_stages,
        device=plan.device,
        precision=plan.precision,
        release=release,
    ).nbytes
    compiled = verdict.shared_bytes if isinstance(verdict, Compiled) else None
    gap = predicted / compiled - 1 if compiled else None
    return Row(
        variant=plan.variant.summary,
        kernel=step.kernel.name,
        tiles=step.tiles,
        warps=step.num_warps,
        stages=step.num_stages,
        device=plan.device.name,
        dtype=plan.dtype,
        dims=plan.dims,
        predicted=predicted,
        compiled=compiled,
        gap=gap,
        within=gap is not None and abs(gap) <= WITHIN,
    )


def render_table(rows: Sequence[Row]) -> Group:
    """Every row, the widest gaps of a device and dtype first, and then the share within a tenth."""
    from rich.console import Group

    title = f"SRAM predicted and compiled by Triton {triton_version()}, bytes a program"
    return Group(_rows_table(rows, title), _shares_table(rows))


def _rows_table(rows: Sequence[Row], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for heading in ("device", "type", "dims", "kernel", "tiles"):
        table.add_column(heading, no_wrap=True)
    for heading in ("predicted", "compiled", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.device, row.dtype, -_distance(row))):
        tiles = " ".join(f"{name}={size}" for name, size in row.tiles)
        table.add_row(
            row.device,
            row.dtype,
            f"{row.dims[0]}, {row.dims[1]}",
            row.kernel,
            f"{tiles}, {row.warps}w {row.stages}s",
            f"{row.predicted:,}",
            "refused" if row.compiled is None else f"{row.compiled:,}",
            "" if row.gap is None else f"{row.gap:+.1%}",
            style="" if row.within else "yellow",
        )
    return table


def _shares_table(rows: Sequence[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"within {WITHIN:.0%} of the compiler's figure"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("device", "type"):
        table.add_column(heading)
    for heading in ("kernels", "within", "share", "exact", "widest gap"):
        table.add_column(heading, justify="right")
    for device, dtype in dict.fromkeys((row.device, row.dtype) for row in rows):
        group = [row for row in rows if (row.device, row.dtype) == (device, dtype)]
        table.add_row(device, dtype, *_shares(group))
    if rows:
        table.add_section()
        table.add_row("all", "", *_shares(rows))
    return table


def _shares(rows: Sequence[Row]) -> tuple[str, ...]:
    within = sum(row.within for row in rows)
    exact = sum(row.predicted == row.compiled for row in rows)
    gaps = [row.gap for row in rows if row.gap is not None]
    widest = f"{max(gaps, key=abs):+.1%}" if gaps else ""
    return (f"{len(rows)}", f"{within}", f"{within / len(rows):.1%}", f"{exact}", widest)


def _distance(row: Row) -> float:
    return float("inf") if row.gap is None else abs(row.gap)
