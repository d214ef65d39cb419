"""`attnc verify`: kernels run on random inputs, every element held against the reference."""

from __future__ import annotations

from attnc.cli.facts import known_dtype
from attnc.cli.find import find
from attnc.cli.progress import Waiting
from attnc.cli.screen import console, print_json
from attnc.cli.status import FAILED, OK
from attnc.errors import UsageError
from attnc.ops.verification.report import Report


def verify(
    which: str,
    device: str,
    dtypes: tuple[str, ...],
    seed: int | None,
    *,
    backend: str | None,
    deterministic: bool,
    as_json: bool,
) -> int:
    """Verify each variant; as JSON an object, or an array for a whole file."""
    for name in dtypes:
        known_dtype(name)
    found = find(which)
    _check_device(device)
    # torch takes a second to import, and a mistake should not have to wait for it
    from attnc.ops.verification.verify import verify as run

    reports: list[Report] = []
    for variant in found.variants:
        with Waiting(f"verifying {variant.name}") as waiting:
            report = run(
                variant,
                device=device,
                dtypes=tuple(dict.fromkeys(dtypes)) or None,
                seed=seed,
                backend=backend,
                deterministic=deterministic,
                progress=waiting.update,
            )
        reports.append(report)
        if not as_json:
            print_report(report)
    if as_json:
        objects = [report.to_dict() for report in reports]
        print_json(objects if found.whole_file else objects[0])
    return OK if all(report.passed for report in reports) else FAILED


def print_report(report: Report) -> None:
    """The table, then one line: the verdict and the worst element."""
    from rich.text import Text

    screen = console()
    screen.print(report.table())
    for skipped in report.skipped:
        screen.print(Text(f"skipped: {skipped}", "yellow"), soft_wrap=True)
    verdict = Text("passed", "bold green") if report.passed else Text("FAILED", "bold red")
    count = f"{len(report.rows)} comparisons"
    if report.failures:
        count = f"{len(report.failures)} of {count}"
    screen.print(Text.assemble(verdict, f" {report.variant}: {count}"))
    worst = report.worst
    if worst is not None:
        label = "worst element" if report.failures else "nearest to its bound"
        place = f"{worst.what}, {worst.dtype}, {worst.shape}"
        screen.print(f"{label}: {place}: {worst.worst}; {worst.reason}", soft_wrap=True)
    if report.failures:
        again = f"the same inputs again: attnc verify ... --seed {report.seed}"
        screen.print(again, soft_wrap=True)


def _check_device(name: str) -> None:
    kind = name.partition(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise UsageError(f"unknown device {name!r}", notes=("verify runs on cpu, or on cuda",))
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                "there is no CUDA device here",
                notes=(f"torch {torch.__version__} sees none",),
                hints=("--device cpu interprets the same kernels",),
            )
