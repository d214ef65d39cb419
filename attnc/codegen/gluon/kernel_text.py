"""One kernel of the second backend as text: what its template prints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.codegen.gluon.arguments import assigned, call, listed, partition, taken
from attnc.codegen.gluon.schedule import Schedule, schedule
from attnc.codegen.gluon.statement import ONLINE, gluon_lines, gluon_text
from attnc.codegen.gluon.walk import tile_walk
from attnc.codegen.graph import FINISH, SETUP, Node
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Plan
from attnc.codegen.text.statement import Statement, statement
from attnc.codegen.text.template import render_text
from attnc.codegen.tile_range import KeyLoop
from attnc.codegen.warp_groups import group_registers

_PLACE = ("i_t", "i_b", "i_h", "i_hkv")
_STEP_LINES = ("o_s = i_s + r_s", "m_s = o_s < TK")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class _Run:
    """One loop over key tiles, or the tile before all loops: no `header` there."""

    note: str
    lines: tuple[str, ...]
    ahead: tuple[Statement, ...]
    scores: tuple[Statement, ...]
    accumulator: tuple[Statement, ...]
    header: str = ""
    number: str = ""
    place: str = ""

    def texts(self) -> Iterable[str]:
        yield from self.lines
        for node in (*self.ahead, *self.scores, *self.accumulator):
            yield from node.texts()


def kernel_text(plan: Plan, step: PassPlan, symbol: str) -> str:
    """The functions of one kernel: its range, its producer, its consumer, its entry."""
    kernel = step.kernel
    steps = schedule(kernel.graph, masked=True)
    opening = _run(plan, kernel, replace(kernel.loops[0], masked=True), steps)
    runs = tuple(_run(plan, kernel, loop, steps) for loop in kernel.loops)
    setup = _statements(plan, kernel, _without_copies(kernel.graph.nodes(SETUP)), steps)
    finish = _statements(plan, kernel, _without_copies(kernel.graph.nodes(FINISH)), steps)
    body = [text for node in (*setup, *finish) for text in node.texts()]
    body += [text for run in (opening, *runs) for text in run.texts()]
    persistent = "P" in step.tile
    walk = tile_walk(kernel, plan.algebra.mask, symbol, "i_s", _words(body), opened=True)
    loops = tuple(
        replace(
            run,
            header=walk.header(loop, first=loop is kernel.loops[0]),
            number=walk.number("done + " if persistent else ""),
            place=walk.place(run.texts()),
        )
        for run, loop in zip(runs, kernel.loops, strict=True)
    )
    names = _words([*body, *(run.header for run in loops)])
    read = [tensor for tensor in kernel.tensors if tensor.name not in {"q", "k", "v"}]
    read = [tensor for tensor in read if tensor.name not in walk.data or tensor.name in names]
    strides = [stride for tensor in kernel.tensors for stride in tensor.strides]
    own_strides = [stride for tensor in read for stride in tensor.strides]
    data = ["data"] if walk.data else []
    given = [tensor.name for tensor in read]
    given += [*(["strides"] if own_strides else []), *data, "tiles", "barriers", "sizes"]
    place = f"{symbol}_tile"
    sizes = ", ".join([*(["place"] if persistent else []), *data, "TQ, TK, HQ, HKV"])
    found = [*_PLACE, *walk.found]
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
        own_strides=own_strides,
        packed_strides=listed("    strides = (", own_strides, ")"),
        unpacked_strides=listed("    (", own_strides, ") = strides"),
        partitions=[partition(f"{symbol}_consumer", [*given, str(n)]) for n in range(groups)],
        names=names,
        range_names=_words(walk.lines),
        walk=walk,
        tile=", ".join(found),
        producer_place=assigned(taken(found, {*_PLACE, *walk.all_tiles}), place, sizes),
        consumer_place=assigned(
            taken(found, {"i_t", "i_b", "i_h", *walk.all_tiles, *names}), place, sizes
        ),
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


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(_WORD.findall(" ".join(texts)))


def _run(plan: Plan, kernel: Kernel, loop: KeyLoop, whole: Schedule) -> _Run:
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
    return _Run(loop.note, tuple(lines), ahead, scores, accumulator)


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
