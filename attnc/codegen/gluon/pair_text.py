"""One pass of a backward in the second backend as text: what its template prints.

A consumer warp group is to the graph's statements what a program is in the portable backend: it has
BW rows (of queries in `dq`, of keys in `dkv`), and a number and partial sums of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.codegen.gluon.arguments import assigned, listed, partition, taken
from attnc.codegen.gluon.pair_schedule import (
    PairSchedule,
    Product,
    pair_schedule,
)
from attnc.codegen.gluon.pass_statements import (
    COPIED,
    constants_stated,
    statements,
    without_line,
)
from attnc.codegen.gluon.statement import Layouts
from attnc.codegen.gluon.walk import tile_walk
from attnc.codegen.graph import FINISH, HEAD, SETUP, TAIL
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.gradient.facts import HEAD_OF_GROUP
from attnc.codegen.plan import FUSED, PassPlan, Plan
from attnc.codegen.text.statement import Statement
from attnc.codegen.text.template import render_text
from attnc.codegen.tile_range import KeyLoop
from attnc.codegen.warp_groups import GROUP_ROWS, group_registers

_WORD = re.compile(r"\w+")
# which side a program holds, which it streams, what tells it apart, and what its loops count
_SIDES = {
    "dq": ("BT", "BS", ("i_t", "i_b", "i_h", "i_hkv"), "i_s"),
    "dkv": ("BS", "BT", ("i_s", "i_b", "i_hkv"), "i_t"),
}
_SIDES[FUSED] = _SIDES["dkv"]
_STEP_LINES = {
    "dq": ("o_s = i_s + r_s", "m_s = o_s < TK"),
    "dkv": ("o_t = i_t + r_t", "m_t = o_t < TQ", "b_i = o_t + (TK - TQ)"),
}
_STEP_LINES[FUSED] = _STEP_LINES["dkv"]


@dataclass(frozen=True, slots=True)
class _Fold:
    """A product into an accumulator: the text of its left side, and the streamed tile."""

    total: str
    left: str
    tile: str


@dataclass(frozen=True, slots=True)
class _Run:
    """One run over tiles: its loop, its statements by place, its products."""

    note: str
    lines: tuple[str, ...]
    loads: tuple[Statement, ...]
    ahead: tuple[Statement, ...]
    scores: tuple[Statement, ...]
    gradients: tuple[Statement, ...]
    of_scores: tuple[str, ...]
    of_gradients: tuple[str, ...]
    header: str = ""
    number: str = ""
    place: str = ""

    def texts(self) -> Iterable[str]:
        yield from self.lines
        for node in (*self.loads, *self.ahead, *self.scores, *self.gradients):
            yield from node.texts()


def pair_text(plan: Plan, step: PassPlan, symbol: str) -> str:
    """The functions of one pass: its range, its producer, its consumer, its entry."""
    kernel = step.kernel
    held, streamed, ids, counter = _SIDES[kernel.name]
    steps = pair_schedule(kernel.graph, masked=True)
    own = (steps.scores_of.left.buffer, steps.gradients_of.left.buffer)
    moved = (steps.scores_of.right.buffer, steps.gradients_of.right.buffer)
    layouts = _layouts(held, streamed, kernel)
    runs = tuple(_run(plan, kernel, loop, layouts) for loop in kernel.loops)
    fused = kernel.name == FUSED
    outputs = {tensor.name for tensor in kernel.tensors if tensor.box and tensor.written}
    outputs -= {"dq_sum"}
    kept = [node.tensor for node in steps.statistics if node.tensor]
    left = frozenset({*own, *moved, *outputs, *kept})
    setup, head, tail, finish = (
        statements(plan, kernel, kernel.graph.nodes(region), layouts, left)
        for region in (SETUP, HEAD, TAIL, FINISH)
    )
    body = [text for node in (*setup, *head, *tail, *finish) for text in node.texts()]
    body += [text for run in runs for text in run.texts()]
    names = _words(body)
    walk = tile_walk(kernel, plan.algebra.mask, symbol, counter, names, opened=False)
    earlier = "" if kernel.name == "dq" else "i_g * n_tiles + "
    runs = tuple(
        replace(
            run,
            header=walk.header(loop, first=loop is kernel.loops[0]),
            number=walk.number(earlier),
            place=walk.place(run.texts()),
        )
        for run, loop in zip(runs, kernel.loops, strict=True)
    )
    names |= _words(run.header for run in runs)
    finds_head = walk.by_head or fused
    if not finds_head and "i_h" not in _words(text for text in body if text != HEAD_OF_GROUP):
        # it moved the pointers that the copy engine does without
        head = tuple(without_line(statement, HEAD_OF_GROUP) for statement in head)
    found = list(ids) if walk.by_head else [*ids, *walk.found]
    copied = [*COPIED, *kept]
    read = [tensor for tensor in kernel.tensors if tensor.name not in copied]
    read = [tensor for tensor in read if tensor.name not in walk.data or tensor.name in names]
    strides = [stride for tensor in kernel.tensors for stride in tensor.strides]
    own_strides = [stride for tensor in read for stride in tensor.strides]
    data = ["data"] if walk.data else []
    given = [tensor.name for tensor in read]
    given += [*(["strides"] if own_strides else []), *data, "tiles", "barriers"]
    given += [*(["exchange"] if fused else []), "sizes"]
    groups = step.tile["NW"]
    shares = group_registers(groups)
    scalars = [*kernel.scalars]
    sizes = ", ".join(scalars if walk.by_head else [*data, *scalars])
    place = f"{symbol}_tile"
    by_head = f"i_s{{}}, i_b, i_h, i_hkv, {', '.join([*data, *scalars])}"
    text = render_text(
        "gluon_pairs.jinja",
        symbol=symbol,
        by_rows=kernel.name == "dq",
        tensors=kernel.tensors,
        strides=strides,
        copied=copied,
        kept=kept,
        scalars=list(kernel.scalars),
        held=held,
        streamed=streamed,
        own=own,
        moved=moved,
        outputs=sorted(outputs),
        consumer_signature=listed(f"def {symbol}_consumer(", [*given, "GROUP: gl.constexpr"], "):"),
        own_strides=own_strides,
        packed_strides=listed("    strides = (", own_strides, ")"),
        unpacked_strides=listed("    (", own_strides, ") = strides"),
        partitions=[partition(f"{symbol}_consumer", [*given, str(n)]) for n in range(groups)],
        names=names,
        range_names=_words(walk.lines),
        walk=walk,
        tile=", ".join(found),
        producer_place=assigned(taken(found, {*ids, *walk.all_tiles}), place, sizes),
        consumer_place=assigned(taken(found, {*ids[:3], *walk.all_tiles, *names}), place, sizes),
        walk_found=", ".join(walk.found),
        producer_head=assigned(
            taken([*walk.found], walk.all_tiles), f"{symbol}_head", by_head.format("")
        ),
        consumer_head=assigned(
            taken([*walk.found], {*walk.all_tiles, *names}),
            f"{symbol}_head",
            by_head.format(" // NW"),
        ),
        counter=counter,
        setup=setup,
        head=head,
        tail=tail,
        runs=runs,
        finish=finish,
        scores_of=steps.scores_of,
        gradients_of=steps.gradients_of,
        statistics=statements(
            plan, kernel, steps.statistics, replace(layouts, rows="LANES"), frozenset(), masked=True
        ),
        brought=steps.brought((*steps.scores, *steps.gradients)),
        early=_folds(steps.early),
        late=_folds(steps.late),
        all_totals=steps.totals,
        fused=fused,
        added=steps.added,
        part=_part(step) if fused else None,
        unmasked=[(loop.start, loop.stop) for loop in kernel.loops if not loop.masked],
        groups=groups,
        worker_warps=[4] * (groups - 1) + [1],
        worker_registers=[shares.consumer] * (groups - 1) + [shares.producer],
        last_rows_first=plan.algebra.within_causal,
        place="gl.program_id(0)",
        persistent=False,
    )  # fmt: skip
    text = re.sub(r"\btl\.", "gl.", text)
    # heads are counted in 32 bits here, and elements pass 2**31
    text = re.sub(r"\b(i_(?:h|hkv)) \* stride_", r"\1.to(gl.int64) * stride_", text)
    text = re.sub(r"\bACC\b", "gl.float32", text)
    return constants_stated(text, _constants(plan, step, held, streamed))


def _part(step: PassPlan) -> tuple[str, str]:
    """Where a group's part of a tile of dq begins, a row and a channel: BW by BP of them."""
    by_rows = step.tile["BT"] > GROUP_ROWS
    return ("GROUP * BW", "0") if by_rows else ("0", "GROUP * BP")


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(_WORD.findall(" ".join(texts)))


def _layouts(held: str, streamed: str, kernel: Kernel) -> Layouts:
    wide = {(held, "BK"), (held, "BV")}
    by_sides: dict[tuple[str, ...], str] = {
        (held,): "ROWS",
        (streamed,): "COLUMNS",
        (held, streamed): "SCORES",
        **dict.fromkeys(wide, "TOTALS"),
    }
    buffers = {node.buffer for node in kernel.graph.nodes() if node.shape in wide and node.buffer}
    return Layouts(by_sides, held, wide=frozenset(buffers))


def _constants(plan: Plan, step: PassPlan, held: str, streamed: str) -> dict[str, str]:
    """What the functions of a pass call sizes and layouts: each states those that it uses."""
    tile = step.tile
    mma = "gl.NVMMADistributedLayout([3, 0], [4, 1], [16, {}, 16])"
    return {
        "K": str(plan.dims[0]),
        "V": str(plan.dims[1]),
        **{name: str(tile[name]) for name in ("BT", "BS", "BK", "BV", "NW")},
        "BW": str(tile[held] // tile["NW"]),
        "STAGES": str(step.num_stages),
        "SCORES": mma.format(tile[streamed]),
        "TOTALS": mma.format(tile["BK"]),
        "BP": str(tile.get("BP", 0)),
        "PARTS": mma.format(tile.get("BP", 0)),
        "LANES": f"gl.BlockedLayout([{max(1, tile[streamed] // 32)}], [32], [1], [0])",
        "PAIRS": "gl.NVMMASharedLayout(128, 16, 2)",
        "NUMBERS": "gl.SwizzledSharedLayout(1, 1, 1, [0])",
        "LEFT": "gl.DotOperandLayout(0, TOTALS, 2)",
        "ROWS": "gl.SliceLayout(1, SCORES)",
        "COLUMNS": "gl.SliceLayout(0, SCORES)",
        "ROWS_OF_TOTALS": "gl.SliceLayout(1, TOTALS)",
        "CHANNELS": "gl.SliceLayout(0, TOTALS)",
    }


def _folds(products: Iterable[Product]) -> tuple[_Fold, ...]:
    return tuple(
        _Fold(product.name, product.left.buffer, product.right.buffer) for product in products
    )


def _run(plan: Plan, kernel: Kernel, loop: KeyLoop, layouts: Layouts) -> _Run:
    steps: PairSchedule = pair_schedule(kernel.graph, masked=loop.masked)
    loads, ahead, scores, gradients = (
        statements(plan, kernel, nodes, layouts, frozenset(), masked=loop.masked)
        for nodes in (steps.loads, steps.ahead, steps.scores, steps.gradients)
    )
    of_scores = steps.brought(steps.scores)
    found = _Run(loop.note, (), loads, ahead, scores, gradients, of_scores,
                 steps.brought(steps.gradients))  # fmt: skip
    needed = set(_WORD.findall(" ".join(found.texts())))
    lines: list[str] = []
    for line in reversed(_STEP_LINES[kernel.name]):
        target, _, value = line.partition(" = ")
        if target in needed:
            needed |= set(_WORD.findall(value))
            lines.insert(0, line)
    return replace(found, lines=tuple(lines))
