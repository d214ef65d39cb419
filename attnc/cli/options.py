"""The options that more than one command takes, as decorators of the command's function."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

WHICH = "A shipped variant, FILE:NAME, or a FILE."

which = click.argument("which", metavar="NAME")
several = click.argument("which", metavar="NAME...", nargs=-1, required=True)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
heads = click.option("--heads", metavar="Q,KV", help="Head counts; else declared.")
stateful = click.option(
    "--stateful", is_flag=True, help="Take an initial state and return the last."
)
backward = click.option("--backward", is_flag=True, help="The gradients, not the forward.")
backend = click.option("--backend", metavar="NAME", help="triton or gluon (sm_90); else chosen.")
deterministic = click.option(
    "--deterministic/--no-deterministic", default=True, show_default=True,
    help="Whether all runs give the same gradients.",
)  # fmt: skip
decode = click.option(
    "--decode", is_flag=True, help="A step of one token, --shape B,T with T in the cache."
)
cache = click.option(
    "--cache", metavar="KIND", help="With --decode: contiguous, ring, paged or folded."
)
jobs = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", default=2, show_default=True,
    help="Compilers at a time.",
)  # fmt: skip

# in the order of --help
_FACTS = (
    click.option(
        "--device", metavar="NAME", default="h100", show_default=True,
        help="Plan for a device or a target.",
    ),
    click.option(
        "--dtype", metavar="TYPE", default="bf16", show_default=True,
        help="The tensors' type: bf16, fp16, fp32 or e4m3.",
    ),
    click.option("--out", metavar="TYPE", help="With e4m3, the output's type; else bf16."),
    click.option("--dim", metavar="QK,V", help="Head dims; else declared, else 64."),
    heads,
    click.option(
        "--sram", type=click.IntRange(min=1), metavar="BYTES",
        help="The SRAM budget; else the device's.",
    ),
    click.option(
        "--form", metavar="FORM",
        help="online, parallel, chunked, recurrent, toeplitz, fft, three_pass or butterfly; "
        "else chosen.",
    ),
    click.option(
        "--shape", metavar="B,T",
        help="The workload that costs are for; of a convolution B,T,C.",
    ),
    stateful,
    backward,
    backend,
    deterministic,
    decode,
    cache,
)  # fmt: skip


def taking(*options: Decorator) -> Decorator:
    """All of the options, in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def facts(function: Function) -> Function:
    """The options that say what to plan for; the command gets them as one `facts`."""

    @wraps(function)
    def command(
        *, device: str, dtype: str, out: str | None, dim: str | None, heads: str | None,
        sram: int | None, form: str | None, shape: str | None, stateful: bool, backward: bool,
        backend: str | None, deterministic: bool, decode: bool, cache: str | None, **others: Any,
    ) -> Any:  # fmt: skip
        from attnc.cli.facts import Facts

        known = Facts(
            device, dtype, dim, heads, sram, form, shape, stateful, backward, backend,
            decode, cache, out=out, deterministic=deterministic,
        )  # fmt: skip
        return function(facts=known, **others)

    return taking(*_FACTS)(command)
