"""The options that more than one command takes, as typer reads them off a signature."""

from __future__ import annotations

from typing import Annotated

import typer

WHICH = "A shipped variant, FILE:NAME, or a FILE."
Which = Annotated[str, typer.Argument(metavar="NAME", help=WHICH)]
Several = Annotated[list[str], typer.Argument(metavar="NAME...", help=WHICH)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Plan for a device or a target.")
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="TYPE", help="The tensors' type: bf16, fp16, fp32 or e4m3."),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="TYPE", help="With e4m3, the output's type; else bf16."),
]
Dim = Annotated[
    str | None, typer.Option("--dim", metavar="QK,V", help="Head dims; else declared, else 64.")
]
Heads = Annotated[
    str | None, typer.Option("--heads", metavar="Q,KV", help="Head counts; else declared.")
]
Sram = Annotated[
    int | None,
    typer.Option("--sram", metavar="BYTES", min=1, help="The SRAM budget; else the device's."),
]
Form = Annotated[
    str | None,
    typer.Option(
        "--form",
        metavar="FORM",
        help="online, parallel, chunked, recurrent, toeplitz, fft, three_pass or butterfly; "
        "else chosen.",
    ),
]
Shape = Annotated[
    str | None, typer.Option("--shape", metavar="B,T", help="The workload that costs are for.")
]
Stateful = Annotated[
    bool, typer.Option("--stateful", help="Take an initial state and return the last.")
]
Backward = Annotated[bool, typer.Option("--backward", help="The gradients, not the forward.")]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="triton or gluon (sm_90); else chosen."),
]
Decode = Annotated[
    bool, typer.Option("--decode", help="A step of one token, --shape B,T with T in the cache.")
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="KIND", help="With --decode: contiguous, ring or paged."),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Compilers at a time.")]
