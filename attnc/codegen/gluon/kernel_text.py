"""One kernel of the second backend as text: what its template prints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.codegen.gluon.arguments import assigned, call, listed, partition, taken
from attnc.codegen.gluon.schedule import Schedule, schedule
from attnc.codegen.gluon.statement import ONLINE, gluon_lines, gluon_text
from attnc.codegen.graph import FINISH, SETUP, Node
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Plan
from attnc.codegen.statement import Statement, statement
from attnc.codegen.template import render_text
from attnc.codegen.tile_range import KeyLoop
from attnc.codegen.warp_groups import group_registers

_PLACE = ("i_t", "i_b", "i_h", "i_hkv")
_STEP_LINES = ("o_s = i_s + r_s", "m_s = o_s < TK")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class _Run:
    """One run over key tiles, or the tile before all runs: `header` and `note` are empty there."""

    note: str
    header: str
    lines: tuple[str, ...]
    ahead: tuple[Statement, ...]
    scores: tuple[Statement, ...]
    accumulator: tuple[Statement, ...]

    def texts(self) -> Iterable[str]:
        yield from (self.header, *self.lines)
        for node in (*self.ahead, *self.scores, *self.accumulator):
            yield from node.texts()


def kernel_text(plan: Plan, step: PassPlan, symbol: str) -> str:
    """The functions of one kernel: its range, its producer, its consumer, its entry."""
    kernel = step.kernel
    steps = schedule(kernel.graph, masked=True)
    start = kernel.loops[0].start
    opening = _run(plan, kernel, replace(kernel.loops[0], masked=True), "", steps)
    loops = tuple(
        _run(plan, kernel, loop, _header(loop, start, first=loop is kernel.loops[0]), steps)
        for loop in kernel.loops
    )
    setup = _statements(plan, kernel, _without_copies(kernel.graph.nodes(SETUP)), steps)
    finish = _statements(plan, kernel, _without_copies(kernel.graph.nodes(FINISH)), steps)
    bounds = tuple(
        dict.fromkeys(
            bound for loop in kernel.loops for bound in (loop.start, loop.stop)
            if bound not in {"0", "TK"}
        )
    )  # fmt: skip
    body = [text for node in (*setup, *finish) for text in node.texts()]
    body += [text for run in (opening, *loops) for text in run.texts()]
    names = frozenset(_WORD.findall(" ".join(body)))
    strides = [stride for tensor in kernel.tensors for stride in tensor.strides]
    given = [tensor.name for tensor in kernel.tensors if tensor.name not in {"q", "k", "v"}]
    given += [*(["strides"] if strides else []), "tiles", "barriers", "sizes"]
    persistent = "P" in step.tile
    place, sizes = f"{symbol}_tile", "place, TQ, TK, HQ, HKV" if persistent else "TQ, TK, HQ, HKV"
    groups = step.tile["NW"]
    shares = group_registers(groups)
    text = render_text(
        "gluon_attend.jinja",
        symbol=symbol,
        tensors=kernel.tensors,
        strides=strides,
        scalars=list(kernel.scalars),
        constants=_constants(plan, step, names),
        consumer_signature=listed(f"def {symbol}_consumer(", [*given, "GROUP: gl.constexpr"], "):"),
        persistent=persistent,
        ordered="ORDERED" in step.tile,
        place="place" if persistent else "gl.program_id(0)",
        rows_signature=listed(
            f"def {symbol}_rows(", ["turn", "done", *given, "GROUP: gl.constexpr"], "):"
        ),
        rows_call=call(f"{symbol}_rows", ["turn", "done", *given, "GROUP"]),
        packed_strides=listed("    strides = (", strides, ")"),
        unpacked_strides=listed("    (", strides, ") = strides"),
        partitions=[partition(f"{symbol}_consumer", [*given, str(n)]) for n in range(groups)],
        names=names,
        range_names=frozenset(_WORD.findall(" ".join(kernel.setup_lines))),
        setup_lines=kernel.setup_lines,
        tile=", ".join([*_PLACE, *bounds]),
        producer_place=assigned(
            taken([*_PLACE, *bounds], {*_PLACE, start, kernel.loops[-1].stop}), place, sizes
        ),
        consumer_place=assigned(
            taken([*_PLACE, *bounds], {"i_t", "i_b", "i_h", start, kernel.loops[-1].stop, *names}),
            place,
            sizes,
        ),
        start=start,
        stop=kernel.loops[-1].stop,
        tile_number="i_s // BS" if start == "0" else f"(i_s - {start}) // BS",
        setup=setup,
        opening=opening,
        loops=loops,
        finish=finish,
        weights=steps.weights,
        pairs=steps.pairs,
        into=steps.into,
        worker_warps=[4] * (groups - 1) + [1],
        worker_registers=[shares.consumer] * (groups - 1) + [shares.producer],
        last_rows_first=plan.algebra.within_causal,
    )
    return re.sub(r"\btl\.", "gl.", text).replace("ACC", "gl.float32")


def _constants(plan: Plan, step: PassPlan, names: frozenset[str]) -> dict[str, int]:
    """Sizes that a module states once: its functions share them. A score may read d, which is K."""
    tile = step.tile
    return {
        **({"K": plan.dims[0]} if "K" in names else {}),
        "BT": tile["BT"],
        "BW": tile["BT"] // tile["NW"],
        **{name: tile[name] for name in ("BS", "BK", "BV", "NW")},
        "STAGES": step.num_stages,
    }


def helper_text(helpers: tuple[str, ...]) -> str:
    """The functions that a score calls, in Gluon: elementwise, so that no layout is named."""
    portable = render_text("helpers.jinja", helpers=helpers).strip()
    return re.sub(r"\btl\.", "gl.", portable).replace("@triton.jit", "@gluon.jit")


def _header(loop: KeyLoop, start: str, *, first: bool) -> str:
    after = "BS" if start == "0" else f"{start} + BS"
    begin = after if first else f"gl.maximum({loop.start}, {after})"
    return f"for i_s in range({begin}, {loop.stop}, BS):"


def _run(plan: Plan, kernel: Kernel, loop: KeyLoop, header: str, whole: Schedule) -> _Run:
    parts = schedule(kernel.graph, masked=loop.masked)
    ahead, scores, accumulator = (
        _statements(plan, kernel, nodes, whole, masked=loop.masked)
        for nodes in (parts.ahead, parts.scores, parts.accumulator)
    )
    texts = " ".join(text for node in (*ahead, *scores, *accumulator) for text in node.texts())
    needed = set(_WORD.findall(texts))
    lines: list[str] = []
    for line in reversed(_STEP_LINES):
        target, _, value = line.partition(" = ")
        if target in needed:
            needed |= set(_WORD.findall(value))
            lines.insert(0, line)
    return _Run(loop.note, header, tuple(lines), ahead, scores, accumulator)


def _without_copies(nodes: Iterable[Node]) -> Iterable[Node]:
    """Nodes but for the tiles that the copy engine moves: the rows, and the output."""
    return (node for node in nodes if node.tensor not in {"q", "o"})


def _statements(
    plan: Plan, kernel: Kernel, nodes: Iterable[Node], steps: Schedule, *, masked: bool = False
) -> tuple[Statement, ...]:
    found = []
    for node in nodes:
        own = statement(plan, kernel, node, masked=masked)
        accumulator = node.buffer == steps.into
        lines = gluon_lines(own.lines, ONLINE, accumulator=accumulator)
        found.append(replace(own, lines=lines, value=gluon_text(own.value, ONLINE)))
    return tuple(found)
