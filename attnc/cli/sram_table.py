"""`attnc sram-table`: predicted SRAM of drawn candidates beside the compiler's own figure."""

from __future__ import annotations

from dataclasses import asdict

from attnc.cli.facts import known_dtype
from attnc.cli.progress import Waiting
from attnc.cli.screen import console, print_json
from attnc.cli.status import FAILED, OK
from attnc.errors import UsageError


def sram_table(
    devices: tuple[str, ...], dtypes: tuple[str, ...], *, count: int, seed: int, as_json: bool
) -> int:
    """Print the table; exit 1 where fewer than nine candidates in ten are within a tenth."""
    from attnc.autotune.sram_table import draw_table, render_table
    from attnc.codegen.device import DEVICES

    for name in devices:
        if name not in DEVICES:
            raise UsageError(
                f"unknown device {name!r}", notes=(f"the known ones are {', '.join(DEVICES)}",)
            )
    for name in dtypes:
        known_dtype(name)
    with Waiting("compiling") as waiting:
        rows = draw_table(
            devices=devices, dtypes=dtypes, count=count, seed=seed, progress=waiting.update
        )
    within = sum(row.within for row in rows)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        screen = console()
        screen.print(render_table(rows))
        screen.print(f"{within} of {len(rows)} within 10% of the compiler's figure")
    return OK if within * 10 >= len(rows) * 9 else FAILED
