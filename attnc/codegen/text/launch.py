"""The text of a launcher: the parameters, the grids and the arguments of every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.plan import TORCH_TYPES, PassPlan, Plan
from attnc.codegen.text.constants import constant_texts
from attnc.codegen.tile_lists import tile_lists
from attnc.codegen.warp_groups import GROUP_ROWS

_LAUNCHERS = {
    "online": "launch_attend.jinja",
    "parallel": "launch_attend.jinja",
    "chunked": "launch_chunked.jinja",
    "recurrent": "launch_recurrent.jinja",
}

_CACHES = {
    "contiguous": "The caches hold position j in row j of C.",
    "ring": "The caches hold position j in row j % C.",
    "folded": "The caches hold position j in row j % C, the state what stands farther back.",
    "paged": "The caches hold position j in row j % P of page block_table[b, j // P].",
}


@dataclass(frozen=True, slots=True)
class LaunchText:
    """What the launch templates print."""

    launcher: str
    phase: str
    parameters: tuple[str, ...]
    summary: str
    returns: str
    calls: tuple[str, ...]
    lists: tuple[str, ...]
    packed: bool
    online: bool
    has_lse: bool
    summed: bool
    gated: bool
    by_channel: bool
    stateful: bool
    global_sum: bool
    state_heads_are_query: bool
    acc: str
    out: str
    head_dim: int
    value_dim: int
    features: int
    padded: int
    slot: int
    tiles: dict[str, int]
    programs: int
    min_chunks: int
    splits: int
    cache_layout: str


def state_slot(plan: Plan) -> int:
    """Elements of one state in the workspace."""
    if plan.features is None:
        return 0
    sums = 1 if plan.algebra.state.normalize == "sum" else 0
    return plan.features.padded_count * (plan.dims[1] + sums)


def used_tensors(plan: Plan) -> tuple[str, ...]:
    """The declared tensors that the kernels of a plan read, in declared order."""
    names = {tensor.given for step in plan.passes for tensor in step.kernel.tensors}
    declared = (*plan.variant.params, *plan.variant.inputs)
    return tuple(tensor.name for tensor in declared if tensor.name in names)


def launch_text(plan: Plan, render_call: Callable[..., str]) -> LaunchText:
    """All of it, for the form of the plan."""
    folded = plan.form in {"chunked", "recurrent"}
    parameters = ["q", "k", "v", *used_tensors(plan)]
    if plan.stateful:
        parameters.append("initial_state")
    cached = plan.decode and plan.algebra.over_cache
    summed = plan.algebra.normalize == "sum"
    shape = "[B, T, HQ, V]" if folded else "[B, TQ, HQ, V]"
    returns = f"o {shape}"
    if plan.algebra.has_lse:
        returns += f" and lse [B, HQ, {'T' if folded else 'TQ'}]"
    if summed and not plan.decode:
        returns += f" and the sums of weights [B, HQ, {'T' if folded else 'TQ'}]"
    if plan.stateful:
        returns += " and the final state"
    if cached:
        parameters += ["lengths", "key_cache", "value_cache"]
        parameters += ["block_table"] if plan.cache == "paged" else []
        returns = "o [B, 1, HQ, V]" + (" and lse [B, HQ, 1]" if plan.algebra.has_lse else "")
        returns += "; the token enters the cache in place"
        if plan.cache == "folded":
            parameters += ["state", "sums"]
            returns += ", a key the state [B, HKV, F, V] and its sums [B, HKV, F]"
    elif plan.decode:
        parameters += ["state", *(["sums"] if summed else [])]
        returns += "; the state [B, HS, F, V] is updated in place"
        if summed:
            returns += ", and so are its sums [B, HS, F]"
    return LaunchText(
        launcher="launch_decode.jinja" if cached else _LAUNCHERS[plan.form],
        phase=plan.phase,
        parameters=tuple(parameters),
        summary=f"Attention by the {plan.form} form, for K = {plan.dims[0]}, V = {plan.dims[1]}.",
        returns=returns,
        calls=tuple(_call(plan, step, render_call) for step in plan.passes),
        lists=list_workspaces(plan),
        packed=plan.algebra.mask.packed,
        online=plan.form == "online",
        has_lse=plan.algebra.has_lse,
        summed=summed,
        gated=plan.algebra.decay in {"gated", "channel"},
        by_channel=plan.algebra.by_channel,
        stateful=plan.stateful,
        global_sum=plan.algebra.global_sum,
        state_heads_are_query=plan.algebra.heads_differ,
        acc=TORCH_TYPES[plan.acc],
        out="q.dtype" if plan.result == plan.dtype else TORCH_TYPES[plan.result],
        head_dim=plan.dims[0],
        value_dim=plan.dims[1],
        features=0 if plan.features is None else plan.features.count,
        padded=0 if plan.features is None else plan.features.padded_count,
        slot=state_slot(plan),
        tiles=dict(plan.passes[-1].tile),
        programs=plan.programs,
        min_chunks=plan.min_chunks,
        splits=plan.splits,
        cache_layout=_CACHES.get(plan.cache, ""),
    )


def tile_count(plan: Plan, tokens: str, tile: int) -> str:
    """How many tiles a head has over the batch: slots enough for any lengths where it is packed."""
    if plan.algebra.mask.packed:
        return f"({tokens} // {tile} + N)"
    return f"triton.cdiv({tokens}, {tile}) * B"


def list_workspaces(plan: Plan) -> tuple[str, ...]:
    """The statements that allocate lists of tiles, for the passes that write them."""
    lists = [tile_lists(plan.algebra.mask, of_rows=of_rows) for of_rows in (True, False)]
    passes = {step.kernel.name for step in plan.passes}
    lines: list[str] = []
    for found in lists:
        if found is not None and found.name in passes:
            lines.append(f"lengths = ({', '.join(found.shape)})")
            lines.append(f"{found.name} = torch.empty(lengths, dtype=torch.int32, device=q.device)")
    return tuple(lines)


def list_grid(plan: Plan, name: str) -> list[str]:
    """The grid of a pass that lists tiles: a program for each list."""
    lists = tile_lists(plan.algebra.mask, of_rows=name == "key_blocks")
    assert lists is not None
    heads, held, _ = lists.shape
    return [f"{held} * {heads}"]


def _call(plan: Plan, step: PassPlan, render_call: Callable[..., str]) -> str:
    kernel = step.kernel
    tile = step.tile
    whole = plan.stateful or plan.algebra.global_sum
    strides = [f"*{t.given or t.name}.stride()" for t in kernel.tensors if t.axes]
    entries = "N" if plan.algebra.mask.packed else "B"
    grids = {
        "online": lambda: [_online_programs(plan, tile)],
        "parallel": lambda: [f"{tile_count(plan, 'TQ', tile['BT'])} * HQ"],
        "gates": lambda: [f"{entries} * HS"],
        "chunk_gates": lambda: chunk_grid(plan, "HS"),
        "channel_gates": lambda: channel_grid(plan, tile),
        "pairs": lambda: chunk_grid(plan, "HQ"),
        "key_blocks": lambda: list_grid(plan, "key_blocks"),
        "state": lambda: segment_grid(plan, "NV", "HS", state_slots(plan, whole=whole)),
        "scan": lambda: scan_grid(plan, tile, "HS"),
        "output": lambda: segment_grid(plan, "NV", "HQ", "NS"),
        "sum_output": lambda: segment_grid(plan, "NV", "HQ", "NS"),
        "recurrent": lambda: ["NV * N", "HS"] if plan.algebra.mask.packed else ["NV * B * HS"],
        "decode": lambda: ["B * HKV", *(["NS"] if plan.splits > 1 else [])],
        "combine": lambda: ["B * HQ"],
    }
    return render_call(
        symbol=f"{plan.variant.name}_{kernel.name}",
        grid=grids[kernel.name](),
        tensors=[tensor_text(tensor, tile) for tensor in kernel.tensors],
        names=[tensor.given or tensor.name for tensor in kernel.tensors],
        described=[tensor.given or tensor.name for tensor in kernel.tensors if tensor.box],
        numbers=[*strides, *scalar_texts(plan, kernel)],
        constants=constant_texts(plan, step, [t.given or t.name for t in kernel.tensors]),
        options=step.options,
    )


def segment_grid(plan: Plan, programs: str, heads: str, segments: str) -> list[str]:
    """Some programs a segment of every head; a slot each where sequences are packed."""
    if plan.algebra.mask.packed:
        return [" * ".join(filter(None, (programs, segments))), heads]
    return [" * ".join(filter(None, (programs, "B", heads))), segments]


def chunk_grid(plan: Plan, heads: str) -> list[str]:
    """A program a chunk of every head, on the first axis: CUDA's others end at 65,535."""
    if plan.algebra.mask.packed:
        return ["NC", heads]
    return [f"NC * B * {heads}"]


def channel_grid(plan: Plan, tile: Mapping[str, int]) -> list[str]:
    """Programs of BK channels, of every sequence and head."""
    programs = ceil(plan.dims[0] / tile["BK"])
    if plan.algebra.mask.packed:
        return [f"{programs} * N", "HS"]
    return [f"{programs} * B * HS"]


def scan_grid(plan: Plan, tile: Mapping[str, int], heads: str) -> list[str]:
    """Programs of BE elements of a state, of every sequence and head."""
    programs = f"triton.cdiv({state_slot(plan)}, {tile['BE']})"
    if plan.algebra.mask.packed:
        return [f"{programs} * N", heads]
    return [f"{programs} * B * {heads}"]


def _online_programs(plan: Plan, tile: Mapping[str, int]) -> str:
    """A program a tile of rows; as many as multiprocessors at most where they are persistent."""
    tiles = f"{tile_count(plan, 'TQ', tile['BT'])} * HQ"
    return f"min({tile['P']}, {tiles})" if "P" in tile else tiles


def tensor_text(tensor: TensorArgument, tile: Mapping[str, int], name: str = "") -> str:
    """A tensor as the launcher hands it over: itself, or a descriptor that moves its box.

    `name` is what the launcher calls it, where that is neither its own name nor the caller's.
    """
    name = name or tensor.given or tensor.name
    if tensor.box is None:
        return name
    rows, columns = box_sides(tensor, tile)
    return f"tiled({name}, {rows}, {columns})"


def box_sides(tensor: TensorArgument, tile: Mapping[str, int]) -> tuple[int, int]:
    """Rows and columns of the box that a descriptor moves; BW are one consumer's."""
    assert tensor.box is not None
    rows, columns = (GROUP_ROWS if side == "BW" else tile[side] for side in tensor.box)
    return rows, columns


def scalar_texts(plan: Plan, kernel: Kernel) -> list[str]:
    """What a launcher hands over as the scalars of a kernel."""
    texts: dict[str, str] = {}
    if kernel.name in {"gates", "channel_gates"}:
        # they run over the keys of a launch that names them TK
        texts = {"T": "TK"}
    elif kernel.name in {"state", "dstate"} and _sums_sequences(plan):
        texts = {"NS": "N", "MS": "1"}
    return [texts.get(name, name) for name in kernel.scalars]


def _sums_sequences(plan: Plan) -> bool:
    """Whether all keys of each packed sequence are summed: by one segment, as no pass adds up."""
    return plan.algebra.mask.packed and plan.algebra.global_sum


def state_slots(plan: Plan, *, whole: bool) -> str:
    """The segments of a head that the state pass folds: but for the last, if none wants that."""
    if plan.algebra.mask.packed:
        return "N" if _sums_sequences(plan) else "NS"
    return "NS" if whole else "NS - 1"
