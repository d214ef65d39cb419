"""Every command's line. What a command does, and what that imports, is a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from attnc.cli.options import (
    WHICH,
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
    Several,
    Shape,
    Sram,
    Stateful,
    Which,
)
from attnc.cli.screen import print_error
from attnc.cli.status import BROKEN_PIPE, INTERRUPTED, OK, USAGE, status_of
from attnc.errors import AttncError, UsageError

# typer brings a click of its own in newer releases, so its base class is found through typer
_CLICK_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="attnc",
    help="Attention kernels from declarations: planned, readable, checked.",
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def attnc(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Attention kernels from declarations: planned, readable, checked."""
    if version:
        from attnc import __version__

        typer.echo(f"attnc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    return OK


@app.command("list")
def list_command(as_json: Json = False) -> int:
    """List the shipped variants."""
    from attnc.cli.list_variants import list_variants

    return list_variants(as_json=as_json)


@app.command("check")
def check_command(which: Which) -> int:
    """Check declarations; exit 2 where one is refused."""
    from attnc.cli.check import check

    return check(which)


@app.command("plan")
def plan_command(
    which: Which,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
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
        decode, cache,
    )  # fmt: skip
    return plan(which, facts, compiled=compiled, as_json=as_json)


@app.command("explain")
def explain_command(
    which: Which,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
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
        decode, cache,
    )  # fmt: skip
    return explain(which, facts)


@app.command("emit")
def emit_command(
    which: Which,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file.")
    ] = None,
    device: DeviceName = "h100",
    dtype: Dtype = "bf16",
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
        decode, cache,
    )  # fmt: skip
    return emit(which, facts, output)


@app.command("build")
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
        typer.Option("--dtype", metavar="TYPE", help="bf16 (default), fp16, fp32; repeatable."),
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
    jobs: Jobs = 2,
) -> int:
    """Compile ahead of time, with no GPU, into a package."""
    from attnc.cli.build import Order, build

    dims, dtypes = tuple(dim or ()), tuple(dtype or ())
    order = Order(
        tuple(target), dims, dtypes, heads, stateful, backward, wheel, backend, decode, cache
    )
    return build(which, order, output, jobs=jobs)


@app.command("verify")
def verify_command(
    which: Which,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Interpret, or run on a GPU.")
    ] = "cpu",
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16, fp16, fp32; repeatable."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Draw the same inputs again.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run kernels against the fp64 reference; exit 1 where one fails."""
    from attnc.cli.verify import verify

    return verify(which, device, tuple(dtype or ()), seed, as_json=as_json)


@app.command("tune")
def tune_command(
    which: Annotated[str, typer.Argument(metavar="[NAME]", help=WHICH)] = "",
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="B,T,H[,Hkv],K,V", help="What to tune for; repeatable."),
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
        raise UsageError("tune wants a variant and a --shape B,T,H,K,V")
    phases = ("forward",) if forward else ("forward", "backward")
    wanted = command.Wanted(
        tuple(shape), tuple(dtype or ("bf16",)), phases, device, budget, exhaustive, backend
    )
    return command.tune(which, wanted, as_json=as_json)


@app.command("report")
def report_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page to write.")
    ] = Path("attnc-report.html"),
) -> int:
    """Write what tuning saw as one page of HTML."""
    from attnc.cli.report import report

    return report(output)


@app.command("gallery")
def gallery_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of the pages.")
    ],
    which: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help=WHICH)] = None,
) -> int:
    """Write a page of Markdown for each shipped variant, or those named."""
    from attnc.cli.gallery import gallery

    return gallery(tuple(which or ()), output)


@app.command("sram-table")
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


@app.command("demo")
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


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status."""
    command = get_command(app)
    try:
        status = command.main(args=list(arguments), prog_name="attnc", standalone_mode=False)
    except AttncError as error:
        print_error(error)
        return status_of(error)
    except _CLICK_ERROR as error:
        print_error(_usage_error(error))
        return USAGE
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit:
        # click's answer to a reader that closed the pipe
        return BROKEN_PIPE
    return status if isinstance(status, int) else OK


def _usage_error(error: Exception) -> UsageError:
    message = getattr(error, "message", None) or str(error)
    form = getattr(error, "format_message", None)
    message = form() if callable(form) else message
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "attnc")
    headline, *rest = " ".join(str(message).split()).rstrip(".").split(". ", 1)
    return UsageError(headline, hints=(*rest, f"{path} --help lists what there is"))
