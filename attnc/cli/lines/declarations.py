"""The lines of commands on declarations: what there is, is it legal, is it right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.options import WHICH, Backend, Jobs, Json, Which


def list_command(as_json: Json = False) -> int:
    """List the shipped variants."""
    from attnc.cli.list_variants import list_variants

    return list_variants(as_json=as_json)


def check_command(which: Which) -> int:
    """Check declarations; exit 2 where one is refused."""
    from attnc.cli.check import check

    return check(which)


def verify_command(
    which: Which,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Interpret, or run on a GPU.")
    ] = "cpu",
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16, fp16, fp32, e4m3; repeatable."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Draw the same inputs again.")
    ] = None,
    backend: Backend = None,
    as_json: Json = False,
) -> int:
    """Run kernels against the fp64 reference; exit 1 where one fails."""
    from attnc.cli.verify import verify

    return verify(which, device, tuple(dtype or ()), seed, backend=backend, as_json=as_json)


def gallery_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of the pages.")
    ],
    which: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help=WHICH)] = None,
) -> int:
    """Write a page of Markdown for each shipped variant, or those named."""
    from attnc.cli.gallery import gallery

    return gallery(tuple(which or ()), output)


def demo_command(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="flash, based or lightning; repeatable."),
    ] = None,
    jobs: Jobs = 2,
) -> int:
    """Take three published layers through every stage, on a CPU."""
    from attnc.cli.demo import demo

    return demo(tuple(only or ()), jobs=jobs)
