"""The command `attnc`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from attnc.cli.app import run

    sys.exit(run(sys.argv[1:]))
