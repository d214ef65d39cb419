"""Plan -> source text: templates print what the plan decided, from the facts collected here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from attnc.codegen.convolution.launch import ConvolutionLaunch, convolution_launch
from attnc.codegen.gluon.kernel_text import helper_text, kernel_text
from attnc.codegen.gluon.pair_text import pair_text
from attnc.codegen.gluon.row_text import BY_ROWS, row_text
from attnc.codegen.graph import FINISH, HEAD, SETUP, STEP, TAIL
from attnc.codegen.kernel import Kernel, Walk
from attnc.codegen.kernels.gradient.walk import WALKS
from attnc.codegen.plan import TRITON_TYPES, PassPlan, Plan
from attnc.codegen.text.gradient_launch import GradientLaunch, gradient_launch
from attnc.codegen.text.header import header
from attnc.codegen.text.launch import LaunchText, launch_text
from attnc.codegen.text.long_line import broken
from attnc.codegen.text.skeletons import HEADERS, STEP_LINES, TEMPLATES
from attnc.codegen.text.statement import Statement, statements
from attnc.codegen.text.tables import feature_tables
from attnc.codegen.text.template import environment, render_text
from attnc.codegen.tile_range import KeyLoop, Runs
from attnc.codegen.wide_rows import row_unit

_Launch = LaunchText | GradientLaunch | ConvolutionLaunch


@dataclass(frozen=True, slots=True)
class _Loop:
    note: str
    header: str
    lines: tuple[str, ...]
    nodes: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class _Walk:
    note: str
    lines: tuple[str, ...]
    loops: tuple[_Loop, ...]
    runs: Runs | None


def kernel_symbol(plan: Plan, kernel: Kernel) -> str:
    """The name of an emitted kernel."""
    return f"{plan.variant.name}_{kernel.name}"


def render(plan: Plan) -> str:
    """The module text of a plan: the same plan gives the same bytes."""
    if plan.backend == "gluon":
        kernels = [_gluon_kernel(plan, step) for step in plan.passes]
        helpers = helper_text(plan.helpers)
        return _render_module(
            plan,
            "gluon_module.jinja",
            _render_call,
            verb="emitted",
            helpers=helpers,
            kernels=kernels,
            portable=any(_is_portable(step) for step in plan.passes),
        )
    kernels = [render_kernel(plan, step).rstrip() + "\n" for step in plan.passes]
    told = any(step.kernel.whole_rows for step in plan.passes)
    return _render_module(
        plan, "module.jinja", _render_call, verb="emitted", helpers=plan.helpers, kernels=kernels,
        row_unit=row_unit(plan.dims, plan.dtype) if told else 0,
    )  # fmt: skip


def _gluon_kernel(plan: Plan, step: PassPlan) -> str:
    symbol = kernel_symbol(plan, step.kernel)
    if step.kernel.name in BY_ROWS:
        return row_text(plan, step, symbol)
    if _is_portable(step):
        return render_kernel(plan, step).rstrip() + "\n"
    return (pair_text if plan.phase == "backward" else kernel_text)(plan, step, symbol)


def _is_portable(step: PassPlan) -> bool:
    """Whether a pass beside gluon's stays in Triton's language: one that lists tiles."""
    return not step.described and step.kernel.name not in BY_ROWS


def render_launcher(plan: Plan) -> str:
    """The launcher of a plan whose kernels are binaries: the module's, without what compiles."""
    symbols = [kernel_symbol(plan, step.kernel) for step in plan.passes]
    text = _render_module(
        plan, "launcher.jinja", _render_binary_call, verb="built", symbols=symbols
    )
    return text.replace("triton.cdiv(", "cdiv(")


def _render_module(
    plan: Plan, template: str, render_call: Callable[..., str], *, verb: str, **facts: object
) -> str:
    launch = _launch_of(plan)(plan, render_call)
    text = render_text(
        template,
        title=f"{plan.variant.name}: {plan.form} {plan.phase}, {verb} by attnc.",
        header=header(plan),
        fused=not plan.deterministic,
        tables=feature_tables(plan),
        **facts,
        **_launch_facts(launch),
    )
    return broken(tidy(text))


def _launch_of(plan: Plan) -> Callable[[Plan, Callable[..., str]], _Launch]:
    if plan.algebra.family == "conv":
        return convolution_launch
    return gradient_launch if plan.phase == "backward" else launch_text


def tidy(text: str) -> str:
    """Blank lines the way a formatter leaves them: none doubled inside a function, two between."""
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    # inside a body, one blank line at most; before a top-level statement, two
    text = re.sub(r"\n{2,}(?=[ \t])", "\n\n", text)
    text = re.sub(r"\n{2,}(?=(?:@|def |_TABLES))", "\n\n\n", text)
    text = re.sub(r"(:|\()\n\n(?=[ \t])", r"\1\n", text)
    return text.rstrip() + "\n"


def _launch_facts(launch: _Launch) -> dict[str, object]:
    return {name: getattr(launch, name) for name in type(launch).__slots__}


def _render_call(**facts: object) -> str:
    return render_text("call.jinja", **facts)


def _render_binary_call(**facts: object) -> str:
    return render_text("binary_call.jinja", **facts)


def render_kernel(plan: Plan, step: PassPlan) -> str:
    """The text of one kernel in Triton's language, as `render` has it but for the last tidying."""
    kernel = step.kernel
    family = TEMPLATES.get(kernel.name, kernel.name)
    io = f"{_io_tensor(kernel)}.dtype.element_ty"
    setup = tuple(statements(plan, kernel, SETUP, masked=False))
    head, tail, finish = (
        tuple(statements(plan, kernel, region, masked=False)) for region in (HEAD, TAIL, FINISH)
    )
    walks = _walks(plan, kernel, family)
    loops = tuple(loop for walk in walks for loop in walk.loops)
    body = [text for node in (*setup, *head, *tail, *finish) for text in node.texts()]
    body += [text for loop in loops for text in (loop.header, *loop.lines)]
    body += [text for loop in loops for node in loop.nodes for text in node.texts()]
    body += [*kernel.setup_lines, *kernel.head_lines, *kernel.sequence_lines]
    body += [line for walk in walks for line in walk.lines]
    names = frozenset(re.findall(r"\w+", " ".join(body)))
    text = (
        environment()
        .get_template(f"{family}.jinja")
        .render(
            symbol=kernel_symbol(plan, kernel),
            tensors=kernel.tensors,
            strides=[stride for tensor in kernel.tensors for stride in tensor.strides],
            scalars=kernel.scalars,
            unspecialized=[name for name in kernel.scalars if name not in kernel.specialized],
            constants=kernel.constants,
            whole_rows=kernel.whole_rows,
            names=names,
            setup=setup,
            setup_lines=kernel.setup_lines,
            outer=kernel.outer,
            head_lines=kernel.head_lines,
            sequence_lines=kernel.sequence_lines,
            head=head,
            walks=walks,
            tail=tail,
            finish=finish,
            precision=_precision(plan),
            last_rows_first=plan.algebra.within_causal,
            slot=slot_text(plan),
            loops_over_pairs=bool(kernel.loops),
            by_query=kernel.name.startswith("d"),
            stateful=plan.stateful,
            global_sum=plan.algebra.global_sum,
            by_channel=plan.algebra.by_channel,
            cache=plan.cache,
            summed=plan.algebra.state.normalize == "sum",
            backwards=kernel.name in WALKS[1:],
            splits_k=plan.dims[0] > step.tile.get("BK", plan.dims[0]),
            splits_v=plan.dims[1] > step.tile.get("BV", plan.dims[1]),
        )
    )
    text = re.sub(r"\bACC\b", TRITON_TYPES[plan.acc], text)
    return re.sub(r"\bIO\b", io, text)


def _io_tensor(kernel: Kernel) -> str:
    """A tensor of the kernel that has the type of q, k and v."""
    return next(
        (name for name in ("v", "do", "umid", "zmid", "wmid", "q", "k") if kernel.tensor(name)), "q"
    )


def slot_text(plan: Plan) -> str:
    """Elements of one state in the workspace: FP rows of V, then FP sums."""
    return "FP * V + FP" if plan.algebra.state.normalize == "sum" else "FP * V"


def _precision(plan: Plan) -> str:
    if plan.dtype == "fp64":
        return ", out_dtype=tl.float64"  # Triton 3.6 asks, later ones infer it
    return f', input_precision="{plan.precision}"' if plan.dtype == "fp32" else ""


def _walks(plan: Plan, kernel: Kernel, family: str) -> tuple[_Walk, ...]:
    """The loops that a kernel runs one after the other, one group a term."""
    walks = kernel.walks or (Walk("", (), kernel.loops, kernel.runs),)
    return tuple(
        _Walk(
            walk.note,
            walk.lines,
            tuple(_loop(plan, kernel, family, loop, number) for loop in walk.loops),
            walk.runs,
        )
        for number, walk in enumerate(walks)
    )


def _loop(plan: Plan, kernel: Kernel, family: str, loop: KeyLoop, walk: int) -> _Loop:
    nodes = tuple(statements(plan, kernel, STEP, masked=loop.masked, walk=walk))
    needed = set(re.findall(r"\w+", " ".join(text for node in nodes for text in node.texts())))
    pattern = HEADERS.get(kernel.name) or HEADERS.get(family, "for i_c in range({start}, {stop}):")
    header = pattern.format(start=loop.start, stop=loop.stop)
    if loop.start == "0" and pattern.endswith("{stop}):"):
        header = header.replace("(0, ", "(")
    if loop.lines:
        header = f"for i_n in range({loop.stop}):"
    lines: list[str] = []
    for line in reversed(STEP_LINES.get(family, ())):
        target, _, value = line.partition(" = ")
        if target in needed:
            needed |= set(re.findall(r"\w+", value))
            lines.insert(0, line)
    return _Loop(loop.note, header, (*loop.lines, *lines), nodes)
