"""The lines of commands on what a device says: tuning, its report, SRAM."""

from __future__ import annotations

from pathlib import Path

import click

from attnc.cli.options import WHICH, as_json, backend, deterministic, taking
from attnc.errors import UsageError

_TUNE = taking(
    click.argument("which", metavar="[NAME]", default=""),
    click.option(
        "--shape", metavar="B,T,H[,Hkv],K,V", multiple=True,
        help="What to tune for; repeatable. Of a convolution B,T,C[,taps].",
    ),
    click.option(
        "--dtype", metavar="TYPE", multiple=True, help="bf16 (default), fp16, fp32; repeatable."
    ),
    click.option(
        "--device", metavar="cuda|cpu", default="cuda", show_default=True, help="Where to measure."
    ),
    click.option(
        "--budget", metavar="TIME", default="60s", show_default=True,
        help="Of each kernel and shape: 60s, 2m.",
    ),
    click.option("--exhaustive", is_flag=True, help="Measure every legal plan."),
    click.option("--forward", is_flag=True, help="The forward alone."),
    backend,
    deterministic,
    click.option(
        "--export", type=click.Path(path_type=Path), metavar="FILE",
        help="Write the store to a file.",
    ),
    click.option(
        "--import", "take", type=click.Path(path_type=Path), metavar="FILE",
        help="Add an exported file.",
    ),
    as_json,
)  # fmt: skip


@click.command("tune", epilog=f"NAME: {WHICH}")
@_TUNE
def tune_command(
    which: str, shape: tuple[str, ...], dtype: tuple[str, ...], device: str, budget: str,
    exhaustive: bool, forward: bool, backend: str | None, deterministic: bool,
    export: Path | None, take: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Measure candidates on this GPU and keep the winners."""
    from attnc.cli import tune as command

    if take is not None:
        return command.take(take)
    if export is not None:
        return command.export(None if device == "cuda" else device, export)
    if not which or not shape:
        raise UsageError("tune wants a variant and a --shape B,T,H,K,V, or of a convolution B,T,C")
    phases = ("forward",) if forward else ("forward", "backward")
    wanted = command.Wanted(
        shape, dtype or ("bf16",), phases, device, budget, exhaustive, backend, deterministic
    )  # fmt: skip
    return command.tune(which, wanted, as_json=as_json)


@click.command("report")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    default=Path("attnc-report.html"), show_default=True, help="The page to write.",
)  # fmt: skip
def report_command(output: Path) -> int:
    """Write what tuning saw as one page of HTML."""
    from attnc.cli.report import report

    return report(output)


@click.command("sram-table")
@click.option(
    "--device", metavar="NAME", multiple=True, help="a100 and h100 by default; repeatable."
)
@click.option(
    "--dtype", metavar="TYPE", multiple=True, help="bf16 and fp32 by default; repeatable."
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", default=10, show_default=True,
    help="A device and type.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True,
    help="Draw others.",
)  # fmt: skip
@as_json
def sram_table_command(
    device: tuple[str, ...], dtype: tuple[str, ...], count: int, seed: int, as_json: bool
) -> int:
    """Hold predicted SRAM against the compiler's over drawn candidates."""
    from attnc.cli.sram_table import sram_table

    devices, dtypes = device or ("a100", "h100"), dtype or ("bf16", "fp32")
    return sram_table(devices, dtypes, count=count, seed=seed, as_json=as_json)
