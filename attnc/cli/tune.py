"""`attnc tune`: measure candidates on the device, and keep the winners for later calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnc.cli.facts import known_backend, known_dtype
from attnc.cli.find import find
from attnc.cli.screen import console, print_json, table
from attnc.cli.status import FAILED, OK
from attnc.dsl.convolution import Convolution
from attnc.dsl.variant import Variant
from attnc.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from attnc.autotune.measure import Trial
    from attnc.ops.tuning.tune import Job, Result
    from attnc.ops.verification.convolution import FilterShape
    from attnc.ops.verification.draw import Shape


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    shapes: tuple[str, ...]
    dtypes: tuple[str, ...] = ("bf16",)
    phases: tuple[str, ...] = ("forward", "backward")
    device: str = "cuda"
    budget: str = "60s"
    exhaustive: bool = False
    backend: str | None = None
    deterministic: bool = True


def tune(which: str, wanted: Wanted, *, as_json: bool) -> int:
    """Tune each variant at each shape; exit 1 where a kernel has no candidate that works."""
    for name in wanted.dtypes:
        known_dtype(name)
    known_backend(wanted.backend)
    budget = seconds_of(wanted.budget)
    found = find(which)
    shapes = [[shape_of(text, variant) for text in wanted.shapes] for variant in found.variants]
    _check_device(wanted.device)

    from rich.live import Live

    from attnc.ops.op import compile
    from attnc.ops.tuning.tune import tune as run

    screen = console()
    results: list[Result] = []
    for variant, asked in zip(found.variants, shapes, strict=True):
        with Live(console=screen, transient=True, refresh_per_second=4) as live:
            results += run(
                compile(variant, backend=wanted.backend, deterministic=wanted.deterministic),
                asked, dtypes=wanted.dtypes,
                phases=wanted.phases, device=wanted.device, budget_s=budget,
                exhaustive=wanted.exhaustive,
                show=lambda job, trials: live.update(_table(job, trials)),
            )  # fmt: skip
    if as_json:
        print_json([_object(result) for result in results])
    else:
        for result in results:
            screen.print(_table(result.job, result.trials))
            screen.print(_verdict(result), soft_wrap=True)
    return OK if all(result.answer is not None for result in results) else FAILED


def export(device: str | None, target: Path) -> int:
    """Write the store's answers for a device to a file.

    Raises:
        UsageError: no device is named and none is here, or the file cannot be written.
    """
    from attnc.autotune.tuning_store import TuningStore

    model = device or _model()
    try:
        count = TuningStore().export_to(model, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    console().print(f"{count} tuned kernels of {model} in {target}", soft_wrap=True)
    return OK


def take(source: Path) -> int:
    """Add the answers of an exported file to the store."""
    from attnc.autotune.tuning_store import TuningStore

    model, count = TuningStore().import_from(source)
    console().print(f"{count} tuned kernels of {model} taken", soft_wrap=True)
    return OK


def shape_of(text: str, variant: Variant) -> Shape:
    """`B,T,H[,Hkv],K,V` as a shape; of a convolution `B,T,C[,taps]`.

    Raises:
        UsageError: not so many whole numbers, or heads that do not divide.
    """
    from attnc.ops.verification.draw import Shape

    if isinstance(variant, Convolution):
        return _filter_shape(text, variant)
    parts = text.split(",")
    if len(parts) not in {5, 6} or not all(part.strip().isdigit() for part in parts):
        raise UsageError(
            f"--shape {text!r} is not B,T,H,K,V or B,T,H,Hkv,K,V",
            hints=("for example --shape 8,4096,16,128,128",),
        )
    numbers = [int(part) for part in parts]
    batch, tokens, heads, *rest = numbers
    kv = rest[0] if len(rest) == 3 else heads
    if 0 in numbers or heads % kv:
        raise UsageError(f"--shape {text!r}: sizes start at 1, and Hkv divides H")
    return Shape(batch, tokens, tokens, heads, kv, rest[-2], rest[-1])


def _filter_shape(text: str, variant: Convolution) -> FilterShape:
    """As many taps as the mask shows of one a token, where none are given."""
    from attnc.ops.verification.convolution import FilterShape

    parts = text.split(",")
    if len(parts) not in {3, 4} or not all(part.strip().isdigit() for part in parts):
        raise UsageError(
            f"--shape {text!r} is not B,T,C or B,T,C,taps",
            notes=(f"{variant.name!r} is a convolution: v is [B, T, C]",),
            hints=("for example --shape 8,4096,1024",),
        )
    numbers = [int(part) for part in parts]
    if 0 in numbers:
        raise UsageError(f"--shape {text!r}: sizes start at 1")
    batch, tokens, channels, *taps = numbers
    centred = variant.filter.lowest is None
    low, high = variant.filter.offsets(taps[0] if taps else tokens | centred)
    if high < low or (centred and (high - low) % 2):
        raise UsageError(f"--shape {text!r}: no filter of {variant.name!r} has so many taps")
    return FilterShape.of(batch, tokens, channels, high - low + 1)


def seconds_of(text: str) -> float:
    """`60s`, `2m` or `90` in seconds.

    Raises:
        UsageError: not a time.
    """
    factor = {"s": 1.0, "m": 60.0}.get(text[-1:], 0.0)
    digits = text[:-1] if factor else text
    if not digits.replace(".", "", 1).isdigit():
        raise UsageError(f"--budget {text!r} is not a time", hints=("60s, 2m, or seconds",))
    return float(digits) * (factor or 1.0)


def _table(job: Job, trials: Sequence[Trial]) -> Table:
    from rich.text import Text

    rows = table("candidate", figures=("predicted us", "SRAM B", "spilled B", "ms", "noise"))
    rows.title = f"{job.op.variant.name} {job.phase}, {job.dtype}, {job.shape}"
    timed = [trial for trial in trials if trial.samples and not trial.problem]
    best = min((trial.ms for trial in timed), default=0.0)
    # a backward is tuned pass by pass: the candidates of one pass stand together
    order = {name: n for n, name in enumerate(dict.fromkeys(_pass(t) for t in trials))}
    for trial in sorted(trials, key=lambda t: (order[_pass(t)], t.ms if t in timed else 1e30)):
        good = trial in timed
        rows.add_row(
            Text(trial.label if good or not trial.problem else f"{trial.label}: {trial.problem}"),
            f"{trial.predicted_us:,.0f}",
            f"{trial.footprint:,}",
            "" if trial.spills is None else str(trial.spills),
            f"{trial.ms:.4f}" if good else "",
            f"{trial.noise:.1%}" if good else "",
            style="bold green" if good and trial.ms == best else "" if good else "dim",
        )
    return rows


def _pass(trial: Trial) -> str:
    return trial.label.partition(":")[0]


def _verdict(result: Result) -> str:
    answer = result.answer
    if answer is None:
        return "no candidate works: the table says why of each"
    tiles = "; ".join(answer.choice)
    share = f"{answer.measured} of {answer.candidates} measured"
    return (
        f"{answer.ms:.4f} ms (noise {answer.noise:.1%}), {share}, kept for {answer.bucket}: {tiles}"
    )


def _object(result: Result) -> dict[str, object]:
    from dataclasses import asdict

    trials = [
        {"candidate": t.text, "predicted_us": t.predicted_us, "footprint": t.footprint,
         "spills": t.spills, "ms": t.ms if t.samples else None, "problem": t.problem}
        for t in result.trials
    ]  # fmt: skip
    answer = None if result.answer is None else asdict(result.answer)
    return {"shape": str(result.job.shape), "answer": answer, "trials": trials}


def _model() -> str:
    import torch

    from attnc.ops.placement import device_model

    if not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device here",
            hints=("name a model: --device 'NVIDIA H100 80GB HBM3'",),
        )
    return device_model(torch.device("cuda"))


def _check_device(name: str) -> None:
    if name not in {"cpu", "cuda"}:
        raise UsageError(f"unknown device {name!r}", notes=("tune runs on cuda, or on cpu",))
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                "there is no CUDA device here",
                notes=(f"torch {torch.__version__} sees none",),
                hints=("--device cpu times the interpreter, which tells nothing about a GPU",),
            )
