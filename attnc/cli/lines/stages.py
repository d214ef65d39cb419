"""The lines of commands on stages: a plan, its reasons, its text, its binaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.options import (
    Backend,
    Backward,
    Cache,
    Decode,
    DeviceName,
    Dim,
    Dtype,
    Form,
    Heads,
    Jobs,
    Json,
    Out,
    Several,
    Shape,
    Sram,
    Stateful,
    Which,
)


def plan_command(
    which: Which,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
    out: Out = None,
    dim: Dim = None,
    heads: Heads = None,
    sram: Sram = None,
    form: Form = None,
    shape: Shape = None,
    stateful: Stateful = False,
    backward: Backward = False,
    backend: Backend = None,
    decode: Decode = False,
    cache: Cache = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled/--no-compiled", help="Hold the plan against the compiler's own figures."
        ),
    ] = True,
    as_json: Json = False,
) -> int:
    """Plan tiles, loops and SRAM for a device, and what they cost."""
    from attnc.cli.facts import Facts
    from attnc.cli.plan import plan

    facts = Facts(
        device, dtype, dim, heads, sram, form, shape, stateful, backward, backend,
        decode, cache, out=out,
    )  # fmt: skip
    return plan(which, facts, compiled=compiled, as_json=as_json)


def explain_command(
    which: Which,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
    out: Out = None,
    dim: Dim = None,
    heads: Heads = None,
    sram: Sram = None,
    form: Form = None,
    shape: Shape = None,
    stateful: Stateful = False,
    backward: Backward = False,
    backend: Backend = None,
    decode: Decode = False,
    cache: Cache = None,
) -> int:
    """Print every stage: declaration, algebra, graph, plan."""
    from attnc.cli.explain import explain
    from attnc.cli.facts import Facts

    facts = Facts(
        device, dtype, dim, heads, sram, form, shape, stateful, backward, backend,
        decode, cache, out=out,
    )  # fmt: skip
    return explain(which, facts)


def emit_command(
    which: Which,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file.")
    ] = None,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
    out: Out = None,
    dim: Dim = None,
    heads: Heads = None,
    sram: Sram = None,
    form: Form = None,
    shape: Shape = None,
    stateful: Stateful = False,
    backward: Backward = False,
    backend: Backend = None,
    decode: Decode = False,
    cache: Cache = None,
) -> int:
    """Print the kernels of a variant as one Python module."""
    from attnc.cli.emit import emit
    from attnc.cli.facts import Facts

    facts = Facts(
        device, dtype, dim, heads, sram, form, shape, stateful, backward, backend,
        decode, cache, out=out,
    )  # fmt: skip
    return emit(which, facts, output)


def build_command(
    which: Several,
    target: Annotated[
        list[str],
        typer.Option("--target", metavar="TARGET", help="cuda:90, hip:gfx942, ...; repeatable."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The package's folder.")
    ],
    dim: Annotated[
        list[str] | None, typer.Option("--dim", metavar="QK,V", help="Head dims; repeatable.")
    ] = None,
    heads: Heads = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16 (default), fp16, fp32, e4m3; repeat."),
    ] = None,
    stateful: Stateful = False,
    backward: Backward = False,
    backend: Backend = None,
    decode: Decode = False,
    cache: Cache = None,
    wheel: Annotated[
        str | None,
        typer.Option("--wheel", metavar="NAME", help="A pip-installable wheel, backward included."),
    ] = None,
    any_platform: Annotated[
        bool,
        typer.Option("--any-platform", help="A wheel without the launcher in C: launches slower."),
    ] = False,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--tokens", metavar="N", min=1, help="Lengths to plan convolutions for; 4096; repeat."
        ),
    ] = None,
    jobs: Jobs = 2,
) -> int:
    """Compile ahead of time, with no GPU, into a package."""
    from attnc.cli.build import Order, build

    dims, dtypes = tuple(dim or ()), tuple(dtype or ())
    order = Order(
        tuple(target), dims, dtypes, heads, stateful, backward, wheel, backend, decode, cache,
        any_platform, tuple(tokens or ()),
    )  # fmt: skip
    return build(which, order, output, jobs=jobs)
