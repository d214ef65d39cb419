"""The lines of commands on declarations: what there is, is it legal, is it right."""

from __future__ import annotations

from pathlib import Path

import click

from attnc.cli.options import WHICH, as_json, backend, deterministic, jobs, which


@click.command("list")
@as_json
def list_command(as_json: bool) -> int:
    """List the shipped variants."""
    from attnc.cli.list_variants import list_variants

    return list_variants(as_json=as_json)


@click.command("check", epilog=f"NAME: {WHICH}")
@which
def check_command(which: str) -> int:
    """Check declarations; exit 2 where one is refused."""
    from attnc.cli.check import check

    return check(which)


@click.command("verify", epilog=f"NAME: {WHICH}")
@which
@click.option(
    "--device", metavar="cpu|cuda", default="cpu", show_default=True,
    help="Interpret, or run on a GPU.",
)  # fmt: skip
@click.option("--dtype", metavar="TYPE", multiple=True, help="bf16, fp16, fp32, e4m3; repeatable.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Draw the same inputs again.")
@backend
@deterministic
@as_json
def verify_command(
    which: str, device: str, dtype: tuple[str, ...], seed: int | None, backend: str | None,
    deterministic: bool, as_json: bool,
) -> int:  # fmt: skip
    """Run kernels against the fp64 reference; exit 1 where one fails."""
    from attnc.cli.verify import verify

    return verify(
        which, device, dtype, seed,
        backend=backend, deterministic=deterministic, as_json=as_json,
    )  # fmt: skip


@click.command("gallery", epilog=f"NAME: {WHICH}")
@click.argument("which", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True,
    help="The folder of the pages.",
)  # fmt: skip
def gallery_command(which: tuple[str, ...], output: Path) -> int:
    """Write a page of Markdown for each shipped variant, or those named."""
    from attnc.cli.gallery import gallery

    return gallery(which, output)


@click.command("demo")
@click.option(
    "--only", metavar="NAME", multiple=True, help="flash, based or lightning; repeatable."
)
@jobs
def demo_command(only: tuple[str, ...], jobs: int) -> int:
    """Take three published layers through every stage, on a CPU."""
    from attnc.cli.demo import demo

    return demo(only, jobs=jobs)
