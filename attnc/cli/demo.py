"""`attnc demo`: published layers through every stage, compiled at full size, with no GPU.

What cannot be run at full size on a CPU is run on a slice, and the slice is named.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

import attnc
from attnc.autotune.triton_here import require_triton
from attnc.autotune.verdict_cache import triton_version
from attnc.cli.demo_layers import LAYERS, SLICE_TOKENS, Layer
from attnc.cli.facts import Facts
from attnc.cli.find import closest
from attnc.cli.fit import Fitted, fit_plans
from attnc.cli.plan_view import gap_text, print_plan, spilled_bytes
from attnc.cli.progress import Waiting
from attnc.cli.screen import console, table
from attnc.cli.status import FAILED, OK
from attnc.codegen.planning.planner import plans
from attnc.dsl.variant import Variant
from attnc.errors import UsageError
from attnc.ops.shipped import shipped

if TYPE_CHECKING:
    from attnc.ops.verification.report import Report, Row

TARGETS = ("cuda:80", "cuda:90")
# the plan that is drawn, of those compiled
_SHOWN = "cuda:90"
_DTYPES = ("bf16", "fp32")
_EXCERPT_LINES = 14
_KERNEL = re.compile(r"^@(?:triton|gluon)\.jit.*$", re.MULTILINE)
_PRODUCT = re.compile(r"tl\.dot\(|warpgroup_mma\(")
_ELLIPSIS = "        ..."


@dataclass(frozen=True, slots=True)
class _Result:
    layer: Layer
    fitted: Fitted
    report: Report
    seconds: float


def demo(only: Sequence[str], *, jobs: int) -> int:
    """Show each layer, then a summary; 1 where an element fails."""
    names = [layer.variant for layer in LAYERS]
    for name in only:
        if name not in names:
            raise UsageError(
                f"the demo has no variant {name!r}",
                notes=(f"it has {', '.join(names)}",),
                hints=closest(name, names),
            )
    require_triton("the demo")
    layers = [layer for layer in LAYERS if not only or layer.variant in only]
    screen = console()
    start = time.monotonic()
    screen.print(
        f"attnc {attnc.__version__}, Triton {triton_version()}: {len(layers)} published "
        f"{'layer' if len(layers) == 1 else 'layers'} from declaration to proof, with no GPU",
        soft_wrap=True,
    )
    results = [_show(screen, layer, jobs) for layer in layers]
    _print_summary(screen, results, time.monotonic() - start)
    return OK if all(result.report.passed for result in results) else FAILED


def _show(screen: Console, layer: Layer, jobs: int) -> _Result:
    start = time.monotonic()
    variant = _variant(layer)
    screen.print()
    screen.print(Rule(Text(f"{layer.model}: {layer.variant}", "bold"), align="left"))
    screen.print(Text(layer.source, "dim"), soft_wrap=True)

    _heading(screen, "declared", f"attnc/ops/variants/{layer.variant}.toml")
    text = (files("attnc") / "ops" / "variants" / f"{layer.variant}.toml").read_text("utf-8")
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    screen.print(_highlighted(code, "toml"))

    ranked = [plans(_facts(layer, target).request(variant)) for target in TARGETS]
    _heading(screen, "algebra", "what it means, and which forms follow")
    screen.print(str(ranked[0][0].algebra), soft_wrap=True)

    with Waiting(f"compiling {layer.variant} for {' and '.join(TARGETS)}") as waiting:
        built = fit_plans(ranked, jobs=jobs, progress=waiting.update)
    shown = built[TARGETS.index(_SHOWN)]
    _heading(screen, "planned", f"at full size, within {shown.plan.device.sram_bytes:,} B of SRAM")
    print_plan(screen, shown.plan, shown)

    lines = len(shown.source.splitlines())
    _heading(screen, "emitted", f"{lines} lines of Triton; from the last kernel's main loop:")
    code = excerpt(shown.source)
    screen.print(_highlighted(code, "python"))

    _heading(
        screen,
        "compiled",
        "ahead of time, at full size: SRAM planned and compiled, spills, in bytes",
    )
    screen.print(_compile_table(built))

    report = _verify(layer)
    same = "the kernels above" if _runs(layer) == shown.plan.digest else "another plan of them"
    _heading(
        screen,
        "proved",
        f"on {report.device}, on the slice {report.rows[0].shape}, seed {report.seed},\n"
        f"        against the fp64 reference: error / bound; bf16 ran {same}",
    )
    screen.print(_verify_table(report))
    return _Result(layer, shown, report, time.monotonic() - start)


def _facts(layer: Layer, target: str) -> Facts:
    q, kv = layer.heads
    qk, v = layer.dims
    shape = f"1,{layer.tokens}"
    # what it proves it proves by the interpreter, which takes triton's kernels
    return Facts(target, dim=f"{qk},{v}", heads=f"{q},{kv}", shape=shape, backend="triton")


def _runs(layer: Layer) -> str:
    """The digest of the plan that an op runs on CPU tensors of the layer's dims."""
    facts = Facts(dim=f"{layer.dims[0]},{layer.dims[1]}", launcher="interpreted")
    return plans(facts.request(_variant(layer)))[0].digest


def _variant(layer: Layer) -> Variant:
    return shipped()[layer.variant]


def _highlighted(lines: Sequence[str], language: str) -> Syntax:
    """Lines in colours, wrapped where a terminal is narrower: none is cut."""
    text = "\n".join(lines)
    return Syntax(text, language, theme="ansi_dark", background_color="default", word_wrap=True)


def _heading(screen: Console, stage: str, text: str) -> None:
    screen.print()
    screen.print(Text.assemble((stage, "bold cyan"), f"  {text}"), soft_wrap=True)


def excerpt(source: str) -> list[str]:
    """The last kernel's first loop: its header, then what surrounds its first product."""
    lines = _last_kernel(source)
    header = next(index for index, line in enumerate(lines) if line.startswith("    for "))
    dots = (n for n, line in enumerate(lines) if n > header and _PRODUCT.search(line))
    first = max(header + 1, next(dots, header + 2) - 1)
    rest = lines[first : first + _EXCERPT_LINES]
    while rest and not rest[-1].strip():
        rest.pop()
    skipped = [_ELLIPSIS] if first > header + 1 else []
    return [lines[header], *skipped, *rest, _ELLIPSIS]


def _last_kernel(source: str) -> list[str]:
    functions = [part for part in _KERNEL.split(source) if _PRODUCT.search(part)]
    lines = functions[-1].splitlines()
    body = next(index for index, line in enumerate(lines) if line.endswith("):"))
    ends = (index for index, line in enumerate(lines) if index > body and line[:1].strip())
    return lines[: next(ends, len(lines))]


def _compile_table(built: Sequence[Fitted]) -> Table:
    figures = ("planned", "compiled", "gap", "regs", "spilled", "binary")
    rows = table("kernel", "target", figures=figures)
    for item in built:
        for step, compiled in zip(item.plan.passes, item.compiled, strict=True):
            planned = step.cost.sram_bytes
            rows.add_row(
                compiled.kernel,
                str(compiled.target),
                f"{planned:,}",
                f"{compiled.shared_bytes:,}",
                gap_text(planned, compiled.shared_bytes),
                str(compiled.registers),
                f"{spilled_bytes(compiled):,}",
                f"{len(compiled.binary) / 1024:.0f} KB",
            )
    return rows


def _verify(layer: Layer) -> Report:
    from attnc.ops.verification.verify import Shape, verify

    shape = Shape(1, SLICE_TOKENS, SLICE_TOKENS, *layer.sliced, *layer.dims)
    with Waiting(f"verifying {layer.variant}") as waiting:
        return verify(_variant(layer), dtypes=_DTYPES, shapes=[shape], progress=waiting.update)


def _verify_table(report: Report) -> Table:
    """A line for each comparison, a column for each dtype."""
    rows = table("what", figures=_DTYPES)
    for what in dict.fromkeys(row.what for row in report.rows):
        cells = [_cell(report.rows, what, dtype) for dtype in _DTYPES]
        rows.add_row(what, *cells)
    return rows


def _cell(rows: Sequence[Row], what: str, dtype: str) -> Text:
    row = next((row for row in rows if (row.what, row.dtype) == (what, dtype)), None)
    if row is None:
        return Text("-", "dim")
    if not row.passed:
        return Text(f"{row.error:.1e} / {row.bound:.1e} FAIL {row.worst}", "bold red")
    return Text.assemble(f"{row.error:.1e} / {row.bound:.1e} ", ("pass", "green"))


def _print_summary(screen: Console, results: Sequence[_Result], seconds: float) -> None:
    screen.print()
    screen.print(Rule(Text("summary", "bold"), align="left"))
    rows = table("layer", "shape", figures=("roofline", "proved", "of bound", "took"))
    for result in results:
        layer, report = result.layer, result.report
        passed = sum(row.passed for row in report.rows)
        worst = report.worst
        rows.add_row(
            layer.model,
            layer.shape,
            f"{result.fitted.plan.time_us:,.0f} us",
            f"{passed} of {len(report.rows)}",
            "-" if worst is None else f"{worst.ratio:.0%}",
            f"{result.seconds:.0f} s",
        )
    screen.print(rows)
    failures = [row for result in results for row in result.report.failures]
    for row in failures:
        screen.print(Text(str(row), "bold red"), soft_wrap=True)
    verdict = Text("FAILED", "bold red") if failures else Text("passed", "bold green")
    screen.print(Text.assemble(verdict, f" in {seconds:.0f} s"))
    screen.print("Your own: attnc check mine.toml, attnc plan mine.toml, attnc verify mine.toml.")
