"""The command line: which commands there are, and how one is run."""

from __future__ import annotations

from collections.abc import Sequence

import click

from attnc.cli.lines import declarations, stages, tuning
from attnc.cli.screen import print_error
from attnc.cli.status import BROKEN_PIPE, INTERRUPTED, OK, USAGE, status_of
from attnc.errors import AttncError, UsageError


class _Commands(click.Group):
    """Lists commands in the order in which they are used, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, help="Print the version.")
@click.pass_context
def app(context: click.Context, version: bool) -> int:
    """Attention kernels from declarations: planned, readable, checked."""
    if version:
        from attnc import __version__

        click.echo(f"attnc {__version__}")
        context.exit(OK)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return OK


# in the order of --help; what a command does is imported when it runs
COMMANDS = (
    declarations.list_command,
    declarations.check_command,
    stages.plan_command,
    stages.explain_command,
    stages.emit_command,
    stages.build_command,
    declarations.verify_command,
    tuning.tune_command,
    tuning.report_command,
    declarations.gallery_command,
    tuning.sram_table_command,
    declarations.demo_command,
)
for _command in COMMANDS:
    # the whole line, wrapped, where click would cut it
    _command.short_help = _command.help
    app.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        status = app.main(args=list(arguments), prog_name="attnc", standalone_mode=False)
    except AttncError as error:
        print_error(error)
        return status_of(error)
    except click.ClickException as error:
        print_error(_usage_error(error))
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit:
        # click's answer to a reader that closed the pipe
        return BROKEN_PIPE
    return status if isinstance(status, int) else OK


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "attnc")
    headline, *rest = " ".join(error.format_message().split()).rstrip(".").split(". ", 1)
    hints = (part.strip("()") for part in rest)
    return UsageError(headline, hints=(*hints, f"{path} --help lists what there is"))
