"""The work of a pass at a workload: bytes through HBM and floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from attnc.codegen.algebra import analyse
from attnc.codegen.graph import HEAD, STEP, Node, elements
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, Request, item_bytes
from attnc.codegen.planning.visibility import (
    border_keys,
    near_keys,
    visible_fraction,
    visited_fraction,
    walked_terms,
)
from attnc.dsl.sum import folded_term


def pair_flops(request: Request) -> float:
    """Products of scores and of values over all pairs that some term sees."""
    work = request.workload
    share = visited_fraction(request.variant, work.tq, work.tk)
    return 2.0 * work.batch * work.hq * work.tq * work.tk * share * sum(request.dims)


def pass_work(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> tuple[float, float]:
    """(HBM bytes, FLOPs) of one launch: each tensor once, each dot of the graph over its loop."""
    work = request.workload
    head_dim, value_dim = request.dims
    size = DTYPES[request.dtype]
    q = work.batch * work.tq * work.hq * head_dim * size
    k = work.batch * work.tk * work.hkv * head_dim * size
    v = work.batch * work.tk * work.hkv * value_dim * size
    o = work.batch * work.tq * work.hq * value_dim * size
    if kernel.name in {"online", "parallel"}:
        return float(q + k + v + o), pair_flops(request)
    if kernel.name in {"dq", "dkv"}:
        pairs = work.batch * work.hq * work.tq * _keys_a_row(request, kernel, tiles)
        # scores and do.v again, then one product a gradient
        columns = 2 * head_dim + value_dim if kernel.name == "dq" else 2 * (head_dim + value_dim)
        written = q + o if kernel.name == "dq" else k + v
        # what a state has given is in the accumulators' type
        given = 4 * work.batch * work.tq * work.hq if kernel.tensor("folded_dq") else 0
        given *= head_dim if kernel.name == "dq" else head_dim + value_dim
        return float(q + k + v + o + written + given), 2.0 * pairs * columns
    if kernel.name == "dqkv":
        # the four of dkv and one of dq, whose sum is read and written where it does not stay in L2
        pairs = work.batch * work.hq * work.tq * work.tk
        pairs *= visited_fraction(request.variant, work.tq, work.tk)
        columns = 3 * head_dim + 2 * value_dim
        return float(q + k + v + o + k + v + 8 * q / size), 2.0 * pairs * columns
    if kernel.name in {"clear", "cast"}:
        own = 2 * o if kernel.name == "clear" else q
        return float(own + 4 * q / size), float(q / size)
    if kernel.name in {"key_blocks", "row_blocks"}:
        # a few bytes for each block of a head, and the numbers of documents
        listed = work.batch * work.hq * (work.tq / 64) * (work.tk / 64)
        return 4.0 * (listed + work.batch * work.tk), listed
    if kernel.name in {"gates", "dgates", "delta"}:
        tokens = work.batch * work.tk * work.hq
        return float(2 * o if kernel.name == "delta" else tokens * 12), float(tokens)
    # sums of a decay a channel, fp64
    sums = 8.0 * work.batch * work.tk * work.hq * head_dim
    if kernel.name in {"chunk_gates", "channel_gates", "dchannel_gates"}:
        return 1.5 * sums, sums / 8
    if kernel.name in {"pairs", "dpairs"}:
        chunks, levels = ceil(work.tk / tiles["BC"]), tiles["LEVELS"]
        weights = work.batch * work.tk * work.hq * tiles["BC"] * size
        products = sum(_dot_flops(kernel, tiles)) * levels * chunks * work.batch * work.hq
        both = q + k + sums
        return float(both + (weights if kernel.name == "pairs" else both + v + o)), products
    if kernel.name in {"decode", "combine"}:
        return _decode_work(request, kernel, tiles)
    if kernel.name == "recurrent":
        return _recurrent_work(request, kernel, float(q + k + v + o))
    summed = sums if kernel.tensor("gates") else 0.0
    chunk = tiles["BC"] or 64
    if kernel.name in {"walk_dq", "walk_dkv", "walk_dk", "walk_dv"}:
        return _walk_work(request, kernel, tiles)
    splits = ceil(value_dim / tiles["BV"]) if "BV" in tiles else 1
    states = _state_bytes(request, kernel, chunk, splits)
    if kernel.name in {"scan", "dscan"}:
        return 2.0 * states, states / 4
    if kernel.name == "sum_output":
        return float(q + k + v + o + states), _sum_flops(request, kernel, tiles, splits)
    heads = work.hkv if kernel.name in {"state", "carry"} else work.hq
    per_chunk = sum(_dot_flops(kernel, tiles))
    flops = per_chunk * work.batch * heads * ceil(work.tk / chunk) * splits
    if kernel.name == "state":
        return float(k + v + states + summed), flops
    if kernel.name == "dstate":
        return float(q + o + states + summed), flops
    if kernel.name in {"carry", "dcarry", "dquery", "dkey", "dvalue"}:
        kept = _carried_bytes(request, kernel, chunk)
        read = q + k + v + o
        moved = {
            "carry": k + v + states,
            "dcarry": q + o + states,
            "dquery": read + q,
            "dkey": read + k,
            "dvalue": read + (q + k) * (splits - 1),
        }
        return float(moved[kernel.name] + kept + summed), flops
    return float(q + k + v + o + states + summed), flops


def walk_splits(dims: tuple[int, int], tiles: Mapping[str, int]) -> int:
    """How many programs share a walk of one head: its columns of k, or of v."""
    return ceil(dims[0] / tiles["BK"]) * ceil(dims[1] / tiles["BV"])


def walk_segments(request: Request, splits: int) -> int:
    """The segments of a head at the workload: no more than fill the device, as launched."""
    work = request.workload
    fill = 2 * request.device.sms // max(1, work.batch * work.hq * splits)
    return max(1, min(fill, work.tk // 256))


def _keys_a_row(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> float:
    """Keys whose pairs a pass of a backward computes for a row: of a folded term, the border's."""
    work, variant = request.workload, request.variant
    found = folded_term(variant) if "LAG" in kernel.constants else None
    if found is None:
        return visited_fraction(variant, work.tq, work.tk) * work.tk
    return near_keys(variant, found[0], work.tk) + border_keys(found[1], tiles["BC"])


def _walk_work(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> tuple[float, float]:
    """Each tensor once: programs that share a head find in L2 what they have in common."""
    work = request.workload
    size = DTYPES[request.dtype]
    tokens = {"k": work.tk * work.hkv, "v": work.tk * work.hkv}
    moved = 0.0
    for tensor in kernel.tensors:
        name = tensor.name.removeprefix("folded_")
        if name in {"q", "k", "v", "do", "dq", "dk", "dv"}:
            columns = request.dims[1] if name in {"v", "do", "dv"} else request.dims[0]
            item = size if name == tensor.name else 4
            moved += work.batch * tokens.get(name, work.tq * work.hq) * columns * item
    splits = walk_splits(request.dims, tiles)
    segments = walk_segments(request, splits)
    if segments > 1 or request.stateful:
        held = (elements(node.shape, dict(tiles)) for node in kernel.graph.nodes() if _holds(node))
        moved += work.batch * work.hq * segments * splits * sum(held) * 4.0
    chunks = work.batch * work.hq * ceil(work.tq / tiles["BC"])
    return moved, sum(_dot_flops(kernel, tiles)) * chunks * splits


def _holds(node: Node) -> bool:
    return node.op == "load" and node.tensor == "states" and len(node.shape) == 2


def _decode_work(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> tuple[float, float]:
    """Every key that the row sees is read once for all heads that share it."""
    work = request.workload
    rows = work.batch * work.hq
    if kernel.name == "combine":
        parts = rows * tiles["BN"] * request.dims[1]
        return 4.0 * parts, 2.0 * parts
    shares = (visible_fraction(term.mask_form, 1, work.tk) for term in walked_terms(request))
    words = sum(shares) * work.tk * sum(request.dims)
    nbytes = work.batch * work.hkv * words * DTYPES[request.dtype]
    state, products = _held_state(request, kernel)
    return nbytes + state, 2.0 * rows * words + products


def _held_state(request: Request, kernel: Kernel) -> tuple[float, float]:
    """(bytes, FLOPs) of the state that a step over a cache reads and writes, with its sums."""
    work = request.workload
    rows = sum(int(node.shape[0]) for node in kernel.graph.nodes() if _keeps_rows(node))
    words = work.batch * work.hkv * rows * (request.dims[1] + 1)
    products = 2.0 * words * (1 + work.hq / work.hkv)
    return 2.0 * words * item_bytes("acc", request.dtype), products


def _recurrent_work(request: Request, kernel: Kernel, tokens: float) -> tuple[float, float]:
    """The state is read and written once a launch; each token folds it and reads its rows."""
    work = request.workload
    algebra = analyse(request.variant)
    heads = work.hq if algebra.heads_differ else work.hkv
    columns = request.dims[1] + (1 if algebra.normalize == "sum" else 0)
    rows = sum(int(node.shape[0]) for node in kernel.graph.nodes() if _keeps_rows(node))
    state = work.batch * heads * rows * columns
    size = item_bytes("acc", request.dtype)
    return tokens + 2.0 * state * size, 2.0 * state * work.tq * (1 + work.hq / heads)


def _keeps_rows(node: Node) -> bool:
    return node.op == "load" and node.tensor == "state"


def _sum_flops(request: Request, kernel: Kernel, tiles: Mapping[str, int], splits: int) -> float:
    """The state's products once a chunk; pairs of the other terms, and those at the border."""
    work, variant = request.workload, request.variant
    found = folded_term(variant)
    assert found is not None, "a term is folded"
    number, distance = found
    rows = tiles["BC"]
    chunks = sum(_dot_flops(kernel, tiles, HEAD)) * ceil(work.tk / rows)
    keys = near_keys(variant, number, work.tk) + border_keys(distance, rows)
    pairs = work.tq * keys * 2.0 * (request.dims[0] + tiles["BV"])
    return (chunks + pairs) * work.batch * work.hq * splits


def _dot_flops(kernel: Kernel, tiles: Mapping[str, int], region: str = STEP) -> list[float]:
    flops: list[float] = []
    for node in kernel.graph.nodes(region):
        if node.left is None or node.right is None:
            continue
        sides = [*node.left.shape, node.right.shape[1]]
        rows, inner, columns = (tiles.get(side) or int(side) for side in sides)
        flops.append(2.0 * rows * inner * columns)
    return flops


def _carried_bytes(request: Request, kernel: Kernel, chunk: int) -> float:
    """HBM bytes of the states that a backward keeps at every chunk."""
    work = request.workload
    rows = max(
        (int(node.shape[0]) for node in kernel.graph.nodes() if node.buffer.startswith("b_h")
         and node.shape and node.shape[0].isdigit()),
        default=request.dims[0],
    )  # fmt: skip
    heads = work.batch * work.hq * ceil(work.tk / chunk)
    return float(heads * rows * request.dims[1] * DTYPES[request.dtype])


def _state_bytes(request: Request, kernel: Kernel, chunk: int, splits: int) -> float:
    """HBM bytes of the states between passes; none where one segment a head fills the device."""
    work = request.workload
    head_dim, value_dim = request.dims
    chunks = ceil(work.tk / chunk)
    wanted = request.device.sms * 2 // max(1, work.batch * work.hq * splits)
    segments = max(1, min(wanted, chunks // 4))
    if segments == 1 and not request.stateful:
        return 0.0
    features = (
        sum(
            int(node.shape[0])
            for node in kernel.graph.nodes()
            if node.buffer.startswith("b_h")
            and node.op in {"load", "fold"}
            and node.shape
            and node.shape[0].isdigit()
            and node.name.startswith(("start b_h", "load b_h"))
        )
        or head_dim
    )
    return float(
        work.batch * work.hq * segments * features * value_dim * item_bytes("fp32", "fp32")
    )
