"""The planner's SRAM held against the compiler's, over variants that nobody chose.

Variants, head dims, forms and tiles are drawn from a seed, each kernel of a plan that multiplies is
compiled without a GPU, and every gap is a row. Passes that hold no tile take no SRAM worth a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING

from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.module_cache import store_module
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, Verdict
from attnc.codegen.algebra import analyse
from attnc.codegen.device import device_named
from attnc.codegen.kernel_spec import KernelSpec
from attnc.codegen.plan import PassPlan, Plan, Request
from attnc.codegen.planner import plans
from attnc.codegen.render import render
from attnc.codegen.signature import kernel_specs
from attnc.codegen.sram import Release, sram_of
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.errors import AttncError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WITHIN = 0.10
# every candidate counts, whether it fits a device or not
_NO_BUDGET = 1 << 30
_HEAD_DIMS = (64, 128)
# a state of monomials fits a program at few channels only
_MONOMIAL_DIM = 16

_SCORES = (
    "softcap({}, 7)",
    "({} - slope[h]*(i - j))",
    "({} - slope[h]*abs(i - j))",
    "({} + u[b,i,h] - u[b,j,h])",
    "({} - y[j])",
    "({} + rel[h,i,j])",
    "({}*gain)",
    "where(i - j < 9, {}, 0.5*s)",
    "(2*tanh({}))",
    "log1p(abs({}))",
)
_MASKS = (
    "causal",
    "full",
    "window(100)",
    "window(64, 64)",
    "prefix(300)",
    "causal & ~window(33)",
    "causal | prefix(77)",
)
_NONNEGATIVE = ("taylor(2)", "1 + s + s**2/2", "elu(x) + 1", "relu(x)**2", "exp(x)", "s**2 + 0.1")
_SIGNED = ("identity", "3*s", "taylor(1)", "s - s**2", "silu(x)", "tanh(x)")
_DECAYS = (
    "-0.05",
    "-slope[h]",
    "log1p(-2**(-5-h))",
    "-g[b,t,h]",
    "-softplus(g[b,t,h])",
    "-gt[b,t]",
)
_DECLARED = {
    "params": {"slope": ("h",), "gain": ()},
    "inputs": {
        "u": ("b", "t", "h"),
        "y": ("b", "t"),
        "rel": ("h", "i", "j"),
        "g": ("b", "t", "h"),
        "gt": ("b", "t"),
    },
}


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel: bytes of SRAM predicted and compiled, and the gap between them.

    `compiled` and `gap` are None where the compiler refuses the kernel; that is never `within`.
    """

    variant: str
    kernel: str
    tiles: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    device: str
    dtype: str
    dims: tuple[int, int]
    predicted: int
    compiled: int | None
    gap: float | None
    within: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """One pass of a drawn plan, and what the compiler needs to know of it."""

    plan: Plan
    step: PassPlan
    kernel: KernelSpec


def draw_table(
    *,
    devices: Sequence[str] = ("a100", "h100"),
    dtypes: Sequence[str] = ("bf16", "fp32"),
    count: int = 10,
    seed: int = 0,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Predicted and compiled SRAM of at least `count` kernels a device and dtype."""
    drawn = [
        candidate
        for device in devices
        for dtype in dtypes
        for candidate in draw_candidates(device, dtype, count=count, seed=seed)
    ]
    release = installed_release()
    with CompilePool(jobs) as pool:
        verdicts = pool.map([_job(candidate) for candidate in drawn], progress)
    return [_row(*pair, release) for pair in zip(drawn, verdicts, strict=True)]


def draw_candidates(device: str, dtype: str, *, count: int, seed: int) -> list[Candidate]:
    """At least `count` candidates: a variant, its form, its dims, then any plan of them all."""
    random = Random(f"{seed} {device} {dtype}")
    found: list[Candidate] = []
    while len(found) < count:
        try:
            request = _draw_request(random, device, dtype)
            plan = random.choice(plans(request))
        except AttncError:
            continue  # a state too large for any tile, say: it has no candidates
        for step, kernel in zip(plan.passes, kernel_specs(plan), strict=True):
            if any(node.op == "dot" for node in step.kernel.graph.nodes()):
                found.append(Candidate(plan, step, kernel))
    return found


def draw_variant(random: Random) -> Variant:
    """A variant of either family, from pieces of the grammar.

    Raises: AttncError where the pieces do not go together.
    """
    fields = {"scale": random.choice(('"rsqrt(d)"', "1.0", "0.3"))}
    mask, expression = random.choice(_MASKS), ""
    if random.random() < 0.5:
        expression = "s"
        for score in random.sample(_SCORES, random.choice((0, 0, 1, 1, 2))):
            expression = score.format(expression)
        fields |= {"feature_map": '"softmax"', "score": f'"{expression}"'}
    else:
        summed = random.random() < 0.5
        weight = random.choice(_NONNEGATIVE if summed else (*_NONNEGATIVE, *_SIGNED))
        fields |= {"feature_map": f'"{weight}"', "normalize": '"sum"' if summed else '"none"'}
        mask = random.choice(("causal", mask))
        if random.random() < 0.7:
            expression = random.choice(_DECAYS)
            fields["log_decay"] = f'"{expression}"'
            # a decay towards the future would be growth
            mask = mask if mask == "causal" else f"causal & ({mask})"
    fields["mask"] = f'"{mask}"'
    lines = [f"{key} = {value}" for key, value in fields.items()]
    return loads("\n".join(["[drawn]", *lines, *_declarations(expression)]))["drawn"]


def _declarations(expression: str) -> Iterator[str]:
    for kind, declared in _DECLARED.items():
        for name, axes in declared.items():
            if f"{name}[" in expression or (not axes and name in expression):
                shape = ", ".join(f'"{axis}"' for axis in axes)
                yield f"{kind}.{name} = {{ shape = [{shape}] }}"


def _draw_request(random: Random, device: str, dtype: str) -> Request:
    variant = draw_variant(random)
    algebra = analyse(variant)
    legal = [verdict.form for verdict in algebra.forms if verdict.legal]
    form = random.choice([form for form in legal if form != "recurrent"])
    dim = random.choice(_HEAD_DIMS)
    chunked = form == "chunked"
    return Request(
        variant=variant,
        device=device_named(device).with_sram(_NO_BUDGET),
        dims=(_MONOMIAL_DIM if chunked and not algebra.direct else dim, dim),
        dtype=dtype,
        form=form,
        stateful=chunked and random.random() < 0.2,
    )


def installed_release() -> Release:
    """The release of Triton that compiles here."""
    major, minor = version("triton").split(".")[:2]
    return int(major), int(minor)


def _job(candidate: Candidate) -> CompileJob:
    plan = candidate.plan
    path = store_module(render(plan), f"{plan.variant.name}_{plan.form}")
    return CompileJob(path, candidate.kernel, Target.parse(plan.device.target))


def _row(candidate: Candidate, verdict: Verdict, release: Release) -> Row:
    plan, step = candidate.plan, candidate.step
    predicted = sram_of(
        step.kernel.graph,
        step.tile,
        io=plan.dtype,
        num_warps=step.num_warps,
        num_stages=step.num_stages,
        device=plan.device,
        precision=plan.precision,
        release=release,
    ).nbytes
    compiled = verdict.shared_bytes if isinstance(verdict, Compiled) else None
    gap = predicted / compiled - 1 if compiled else None
    return Row(
        variant=plan.variant.summary,
        kernel=step.kernel.name,
        tiles=step.tiles,
        warps=step.num_warps,
        stages=step.num_stages,
        device=plan.device.name,
        dtype=plan.dtype,
        dims=plan.dims,
        predicted=predicted,
        compiled=compiled,
        gap=gap,
        within=gap is not None and abs(gap) <= WITHIN,
    )


def render_table(rows: Sequence[Row]) -> Group:
    """Every row, the widest gaps of a device and dtype first, and then the share within a tenth."""
    from rich.console import Group

    title = f"SRAM predicted and compiled by Triton {version('triton')}, bytes a program"
    return Group(_rows_table(rows, title), _shares_table(rows))


def _rows_table(rows: Sequence[Row], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for heading in ("device", "type", "dims", "kernel", "tiles"):
        table.add_column(heading, no_wrap=True)
    for heading in ("predicted", "compiled", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.device, row.dtype, -_distance(row))):
        tiles = " ".join(f"{name}={size}" for name, size in row.tiles)
        table.add_row(
            row.device,
            row.dtype,
            f"{row.dims[0]}, {row.dims[1]}",
            row.kernel,
            f"{tiles}, {row.warps}w {row.stages}s",
            f"{row.predicted:,}",
            "refused" if row.compiled is None else f"{row.compiled:,}",
            "" if row.gap is None else f"{row.gap:+.1%}",
            style="" if row.within else "yellow",
        )
    return table


def _shares_table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(title=f"within {WITHIN:.0%} of the compiler's figure", title_justify="left")
    for heading in ("device", "type"):
        table.add_column(heading)
    for heading in ("kernels", "within", "share", "exact", "widest gap"):
        table.add_column(heading, justify="right")
    for device, dtype in dict.fromkeys((row.device, row.dtype) for row in rows):
        group = [row for row in rows if (row.device, row.dtype) == (device, dtype)]
        table.add_row(device, dtype, *_shares(group))
    if rows:
        table.add_section()
        table.add_row("all", "", *_shares(rows))
    return table


def _shares(rows: Sequence[Row]) -> tuple[str, ...]:
    within = sum(row.within for row in rows)
    exact = sum(row.predicted == row.compiled for row in rows)
    gaps = [row.gap for row in rows if row.gap is not None]
    widest = f"{max(gaps, key=abs):+.1%}" if gaps else ""
    return (f"{len(rows)}", f"{within}", f"{within / len(rows):.1%}", f"{exact}", widest)


def _distance(row: Row) -> float:
    return float("inf") if row.gap is None else abs(row.gap)
