"""The lines of commands on what a device says: tuning, its report, SRAM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.options import WHICH, Backend, Json
from attnc.errors import UsageError


def tune_command(
    which: Annotated[str, typer.Argument(metavar="[NAME]", help=WHICH)] = "",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="B,T,H[,Hkv],K,V",
            help="What to tune for; repeatable. Of a convolution B,T,C[,taps].",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16 (default), fp16, fp32; repeatable."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="cuda|cpu", help="Where to measure.")
    ] = "cuda",
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="Of each kernel and shape: 60s, 2m.")
    ] = "60s",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Measure every legal plan.")
    ] = False,
    forward: Annotated[bool, typer.Option("--forward", help="The forward alone.")] = False,
    backend: Backend = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the store to a file.")
    ] = None,
    take: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Add an exported file.")
    ] = None,
    as_json: Json = False,
) -> int:
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
        tuple(shape), tuple(dtype or ("bf16",)), phases, device, budget, exhaustive, backend
    )
    return command.tune(which, wanted, as_json=as_json)


def report_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page to write.")
    ] = Path("attnc-report.html"),
) -> int:
    """Write what tuning saw as one page of HTML."""
    from attnc.cli.report import report

    return report(output)


def sram_table_command(
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="NAME", help="a100 and h100 by default; repeatable."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16 and fp32 by default; repeatable."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", min=1, help="A device and type.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Draw others.")] = 0,
    as_json: Json = False,
) -> int:
    """Hold predicted SRAM against the compiler's over drawn candidates."""
    from attnc.cli.sram_table import sram_table

    devices, dtypes = tuple(device or ("a100", "h100")), tuple(dtype or ("bf16", "fp32"))
    return sram_table(devices, dtypes, count=count, seed=seed, as_json=as_json)
