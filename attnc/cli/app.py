"""The command line: which commands there are, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.main import get_command

from attnc.cli.lines import declarations, stages, tuning
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


# in the order of --help; what a command does is imported when it runs
COMMANDS: dict[str, Callable[..., int]] = {
    "list": declarations.list_command,
    "check": declarations.check_command,
    "plan": stages.plan_command,
    "explain": stages.explain_command,
    "emit": stages.emit_command,
    "build": stages.build_command,
    "verify": declarations.verify_command,
    "tune": tuning.tune_command,
    "report": tuning.report_command,
    "gallery": declarations.gallery_command,
    "sram-table": tuning.sram_table_command,
    "demo": declarations.demo_command,
}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


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
