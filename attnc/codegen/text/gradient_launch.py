"""The text of a backward's launcher: what it allocates, what it launches, what it reduces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnc.codegen.derive import Partial
from attnc.codegen.kernels.gradient.partial_sums import PartialSum, partial_sum
from attnc.codegen.kernels.gradient.walk import WALKS
from attnc.codegen.plan import FUSED, TORCH_TYPES, PassPlan, Plan
from attnc.codegen.planning.work import walk_splits
from attnc.codegen.text.constants import constant_texts
from attnc.codegen.text.launch import (
    channel_grid,
    chunk_grid,
    list_grid,
    list_workspaces,
    scalar_texts,
    scan_grid,
    segment_grid,
    state_slot,
    state_slots,
    tensor_text,
    tile_count,
)
from attnc.dsl.variant import Declared

_LENGTHS = {"b": "B", "h": "HQ", "i": "TQ", "j": "TK", "n": "NT"}
# one workspace name inside the folds of either direction
_REVERSED = {"states": "dstates", "carried": "dcarried", "sums": "dsums"}


@dataclass(frozen=True, slots=True)
class GradientLaunch:
    """What the launch templates of a backward print."""

    launcher: str
    parameters: tuple[str, ...]
    summary: str
    returns: str
    workspaces: tuple[str, ...]
    calls: dict[str, str]
    lists: tuple[str, ...]
    packed: bool
    reductions: tuple[str, ...]
    online: bool
    summed: bool
    gated: bool
    by_channel: bool
    exponents: bool
    stateful: bool
    global_sum: bool
    row_sums: tuple[str, ...]
    walk_splits: int
    state_heads_are_query: bool
    acc: str
    head_dim: int
    value_dim: int
    slot: int
    carried: int
    carried_type: str
    features: int
    tiles: dict[str, int]
    tile_count: str
    programs: int
    min_chunks: int


def gradient_launch(plan: Plan, render_call: Callable[..., str]) -> GradientLaunch:
    """All of it, for the form of the plan."""
    assert plan.derivation is not None
    # a sum by chunks has passes over pairs, and what they take, beside its walks
    by_sum = plan.form == "chunked" and bool(plan.algebra.terms)
    chunked = plan.form == "chunked" and not by_sum
    online, summed = plan.algebra.has_lse, plan.algebra.normalize == "sum"
    partials = plan.derivation.partials
    exponents = bool(plan.derivation.decay)
    gated = plan.algebra.decay in {"gated", "channel"}
    by_channel = plan.algebra.by_channel
    by_sums = exponents and gated and not chunked
    names = wanted_names(plan)
    grads = ", ".join(["dq", "dk", "dv", *(f"du_{name}" for name in names)])
    tiles = {key: size for step in plan.passes for key, size in step.tile.items()}
    if chunked or by_sum:
        tiles["BV"] = next(s for s in plan.passes if s.kernel.name == "state").tile["BV"]
        count = "NC"
    if not chunked:
        by_rows = next(step for step in plan.passes if step.kernel.name in {"dq", "clear"})
        tile = by_rows.tile
        rows, groups = tile["BT"], tile.get("NW", 1)
        # each consumer group of a program has a partial sum of its own
        count = f"triton.cdiv(TQ, {rows})" + (f" * {groups}" if groups > 1 else "")
        count = "1" if by_sums else count
        chunk = plan.passes[-1].tile.get("BC", 0)
        if by_sums and by_channel:
            count = f"triton.cdiv(TK, {chunk})"
        if plan.algebra.mask.packed:
            count = f"TQ // {rows} + N" if not by_sums else f"TK // {chunk} + N"
            count = "N" if by_sums and not by_channel else count
    uses_tiles = any("n" in partial_sum(partial).axes for partial in partials)
    return GradientLaunch(
        launcher=_launcher(chunked, by_sum),
        parameters=gradient_parameters(plan),
        summary=f"Gradients by the {plan.form} form, for K = {plan.dims[0]}, V = {plan.dims[1]}.",
        returns=f"{grads}{', and that of the initial state' if plan.stateful else ''}",
        workspaces=tuple(_workspace(plan, partial) for partial in partials),
        calls={step.kernel.name: _call(plan, step, render_call) for step in plan.passes},
        lists=list_workspaces(plan),
        packed=plan.algebra.mask.packed,
        reductions=tuple(_reduction(name, partials) for name in names),
        online=online,
        summed=summed,
        gated=gated,
        by_channel=by_channel,
        exponents=exponents and not by_channel if chunked else by_sums,
        stateful=plan.stateful,
        global_sum=plan.algebra.global_sum,
        row_sums=_row_sums(plan),
        walk_splits=_walk_splits(plan),
        state_heads_are_query=plan.algebra.heads_differ,
        acc=TORCH_TYPES[plan.acc],
        head_dim=plan.dims[0],
        value_dim=plan.dims[1],
        slot=state_slot(plan),
        carried=plan.features.padded_count * plan.dims[1] if plan.features else 0,
        carried_type=_carried_type(plan),
        features=plan.features.padded_count if plan.features else 0,
        tiles=tiles,
        tile_count=count if uses_tiles else "",
        programs=plan.programs,
        min_chunks=plan.min_chunks,
    )


def _launcher(chunked: bool, by_sum: bool) -> str:
    if by_sum:
        return "launch_dsum.jinja"
    return "launch_dchunked.jinja" if chunked else "launch_pairs.jinja"


def _row_sums(plan: Plan) -> tuple[str, ...]:
    """What the walk of a sum's rows adds up of each, beside dq."""
    walks = [step.kernel for step in plan.passes if step.kernel.name == "walk_dq"]
    names = ("folded_scores", "folded_weights")
    return tuple(name for name in names if walks and walks[0].tensor(name))


def _walk_splits(plan: Plan) -> int:
    """The most programs that share a walk of one head; 0 where no program walks."""
    found = [walk_splits(plan.dims, step.tile) for step in plan.passes if step.kernel.name in WALKS]
    return max(found, default=0)


def _carried_type(plan: Plan) -> str:
    """The type of the states at chunks, as the pass that keeps them declares it."""
    kept = [step.kernel.tensor("carried") for step in plan.passes if step.kernel.name == "carry"]
    wide = bool(kept) and kept[0] is not None and kept[0].dtype == "acc"
    return TORCH_TYPES[plan.acc] if wide else "q.dtype"


def wanted_names(plan: Plan) -> tuple[str, ...]:
    """The declared tensors whose gradients a backward returns, in declared order."""
    assert plan.derivation is not None
    found = {p.declared.name for p in plan.derivation.partials}
    declared = (*plan.variant.params, *plan.variant.inputs)
    return tuple(tensor.name for tensor in declared if tensor.name in found)


def gradient_tensors(plan: Plan) -> tuple[str, ...]:
    """The declared tensors that the kernels of a backward read, in declared order."""
    names = {tensor.given for step in plan.passes for tensor in step.kernel.tensors}
    names |= set(wanted_names(plan))
    declared = (*plan.variant.params, *plan.variant.inputs)
    return tuple(tensor.name for tensor in declared if tensor.name in names)


def gradient_parameters(plan: Plan) -> tuple[str, ...]:
    """The launcher's parameters: inputs, what the forward kept, the gradients that come in."""
    names = ["q", "k", "v", *(f"u_{name}" for name in gradient_tensors(plan))]
    if plan.algebra.has_lse:
        return (*names, "o", "lse", "do", "dlse")
    if plan.algebra.normalize == "sum":
        names += ["o", "norm"]
    names.append("do")
    if plan.stateful:
        names += ["initial_state", "dfinal"]
    return tuple(names)


def _lengths(plan: Plan, axes: tuple[str, ...]) -> list[str]:
    tokens = {"t": "T", "j": "T"} if plan.form == "chunked" else {"t": "TK"}
    lengths = {**_LENGTHS, **tokens, "k": str(plan.dims[0]), "c": str(plan.dims[1])}
    return [lengths[axis] for axis in axes]


def _workspace(plan: Plan, partial: Partial) -> str:
    sums = partial_sum(partial)
    # a query's position may lie outside the tokens, and hidden tiles of pairs are never visited
    whole = {"i", "j"} <= set(partial.index) or ("i" in partial.index and "t" in sums.axes)
    shape = ", ".join(_lengths(plan, sums.axes))
    # and where sequences are packed, slots that none of them needs
    chunks = plan.form == "chunked" or plan.algebra.by_channel
    spare = chunks and plan.algebra.mask.packed and "n" in sums.axes
    maker = "zeros" if whole or spare else "empty"
    return f"{sums.name} = torch.{maker}(({shape}), dtype={TORCH_TYPES[plan.acc]}, device=q.device)"


def _reduction(name: str, partials: tuple[Partial, ...]) -> str:
    mine = [partial for partial in partials if partial.declared.name == name]
    terms = [_reduced(partial_sum(partial), partial.declared) for partial in mine]
    total = terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
    if len(terms) > 1 and len(total) + len(name) > 75:
        # one sum a line, as a formatter leaves them
        inner = "\n            + ".join(terms)
        total = f"(\n            {inner}\n        )"
    return f"{total}.to(u_{name}.dtype)"


def _reduced(sums: PartialSum, declared: Declared) -> str:
    axes = list(sums.axes)
    text = sums.name
    if "hkv" in declared.shape:
        text += ".unflatten(1, (HKV, -1)).sum(2)"
        axes[1] = "hkv"
    gone = [number for number, axis in enumerate(axes) if axis not in declared.shape]
    if len(gone) == len(axes):
        return f"{text}.sum()"
    if gone:
        inner = str(gone[0]) if len(gone) == 1 else str(tuple(gone))
        text += f".sum({inner})"
    left = [axis for axis in axes if axis in declared.shape]
    order = [left.index(axis) for axis in declared.shape]
    if order != sorted(order):
        text += f".permute({', '.join(map(str, order))})"
    return text


def _splits(plan: Plan, tile: Mapping[str, int]) -> list[str]:
    """One more axis of the grid where programs share the columns of v."""
    count = -(-plan.dims[1] // tile["BV"])
    return [str(count)] if count > 1 else []


def _splits_of(plan: Plan, tile: Mapping[str, int]) -> str:
    """The programs that share a segment of one head; empty for one."""
    splits = walk_splits(plan.dims, tile)
    return str(splits) if splits > 1 else ""


def _call(plan: Plan, step: PassPlan, render_call: Callable[..., str]) -> str:
    kernel, tile = step.kernel, step.tile
    backwards = kernel.name in {"dstate", "dscan", "dcarry", *WALKS[1:]}
    back = _REVERSED if backwards else {}
    numbers = [f"*{t.name}.stride()" for t in kernel.tensors if t.axes]
    names = [back.get(tensor.name, tensor.name) for tensor in kernel.tensors]
    numbers += scalar_texts(plan, kernel)
    entries = "N" if plan.algebra.mask.packed else "B"
    grids = {
        "dq": lambda: [f"{tile_count(plan, 'TQ', tile['BT'])} * HQ"],
        **dict.fromkeys(("dkv", FUSED), lambda: [f"{tile_count(plan, 'TK', tile['BS'])} * HKV"]),
        **dict.fromkeys(("clear", "cast"), lambda: [f"triton.cdiv(TQ, {tile['BT']}) * B * HQ"]),
        "delta": lambda: [f"triton.cdiv(T, {tile['BT']}) * B * HQ"],
        "gates": lambda: [f"{entries} * HS"],
        "key_blocks": lambda: list_grid(plan, "key_blocks"),
        "row_blocks": lambda: list_grid(plan, "row_blocks"),
        "dgates": lambda: [f"{entries} * HQ"],
        "state": lambda: segment_grid(plan, "NV", "HS", state_slots(plan, whole=True)),
        "carry": lambda: segment_grid(plan, "NV", "HS", "NS"),
        "dstate": lambda: segment_grid(plan, "NV", "HQ", state_slots(plan, whole=True)),
        "dcarry": lambda: segment_grid(plan, "NV", "HQ", "NS"),
        "scan": lambda: scan_grid(plan, tile, "HS"),
        "dscan": lambda: scan_grid(plan, tile, "HQ"),
        "chunk_gates": lambda: chunk_grid(plan, "HS"),
        "channel_gates": lambda: channel_grid(plan, tile),
        "dchannel_gates": lambda: [f"{entries} * HQ"],
        "pairs": lambda: chunk_grid(plan, "HQ"),
        "dpairs": lambda: chunk_grid(plan, "HQ"),
        "dquery": lambda: chunk_grid(plan, "HKV"),
        "dkey": lambda: chunk_grid(plan, "HKV"),
        "dvalue": lambda: [*chunk_grid(plan, "HKV"), *_splits(plan, tile)],
        **dict.fromkeys(WALKS, lambda: segment_grid(plan, _splits_of(plan, tile), "HQ", "NS")),
    }
    return render_call(
        symbol=f"{plan.variant.name}_{kernel.name}",
        grid=grids[kernel.name](),
        tensors=[
            tensor_text(tensor, tile, name)
            for tensor, name in zip(kernel.tensors, names, strict=True)
        ],
        names=names,
        described=[tensor.name for tensor in kernel.tensors if tensor.box],
        numbers=numbers,
        constants=constant_texts(plan, step, names),
        options=step.options,
    )
