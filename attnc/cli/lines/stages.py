"""The lines of commands on stages: a plan, its reasons, its text, its binaries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnc.cli.options import (
    WHICH,
    as_json,
    backend,
    backward,
    cache,
    decode,
    facts,
    heads,
    jobs,
    several,
    stateful,
    taking,
    which,
)

if TYPE_CHECKING:
    from attnc.cli.facts import Facts


@click.command("plan", epilog=f"NAME: {WHICH}")
@which
@facts
@click.option(
    "--compiled/--no-compiled", default=True, show_default=True,
    help="Hold the plan against the compiler's own figures.",
)  # fmt: skip
@as_json
def plan_command(which: str, facts: Facts, compiled: bool, as_json: bool) -> int:
    """Plan tiles, loops and SRAM for a device, and what they cost."""
    from attnc.cli.plan import plan

    return plan(which, facts, compiled=compiled, as_json=as_json)


@click.command("explain", epilog=f"NAME: {WHICH}")
@which
@facts
def explain_command(which: str, facts: Facts) -> int:
    """Print every stage: declaration, algebra, graph, plan."""
    from attnc.cli.explain import explain

    return explain(which, facts)


@click.command("emit", epilog=f"NAME: {WHICH}")
@which
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to a file."
)
@facts
def emit_command(which: str, output: Path | None, facts: Facts) -> int:
    """Print the kernels of a variant as one Python module."""
    from attnc.cli.emit import emit

    return emit(which, facts, output)


_BUILD = taking(
    several,
    click.option(
        "--target", metavar="TARGET", multiple=True, required=True,
        help="cuda:90, hip:gfx942, ...; repeatable.",
    ),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True,
        help="The package's folder.",
    ),
    click.option("--dim", metavar="QK,V", multiple=True, help="Head dims; repeatable."),
    heads,
    click.option(
        "--dtype", metavar="TYPE", multiple=True, help="bf16 (default), fp16, fp32, e4m3; repeat."
    ),
    stateful,
    backward,
    backend,
    decode,
    cache,
    click.option("--wheel", metavar="NAME", help="A pip-installable wheel, backward included."),
    click.option(
        "--any-platform", is_flag=True,
        help="A wheel without the launcher in C: launches slower.",
    ),
    click.option(
        "--tokens", type=click.IntRange(min=1), metavar="N", multiple=True,
        help="Lengths to plan convolutions for; 4096; repeat.",
    ),
    jobs,
)  # fmt: skip


@click.command("build", epilog=f"NAME: {WHICH}")
@_BUILD
def build_command(
    which: tuple[str, ...], target: tuple[str, ...], output: Path, dim: tuple[str, ...],
    heads: str | None, dtype: tuple[str, ...], stateful: bool, backward: bool,
    backend: str | None, decode: bool, cache: str | None, wheel: str | None, any_platform: bool,
    tokens: tuple[int, ...], jobs: int,
) -> int:  # fmt: skip
    """Compile ahead of time, with no GPU, into a package."""
    from attnc.cli.build import Order, build

    order = Order(
        target, dim, dtype, heads, stateful, backward, wheel, backend, decode, cache,
        any_platform, tokens,
    )  # fmt: skip
    return build(which, order, output, jobs=jobs)
