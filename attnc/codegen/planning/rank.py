"""Which of two legal plans to try first: the roofline, plus what a tile's shape costs.

Only the order of candidates comes from here; the plan's stated time is the roofline itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from attnc.codegen.device import Device
from attnc.codegen.graph import SETUP, STEP, KernelGraph, elements
from attnc.codegen.plan import DTYPES, PassPlan, Plan, Request
from attnc.codegen.planning.work import walk_segments, walk_splits
from attnc.codegen.sram.buffers import WIDENED

# L2 feeds about twice what HBM does on every device of the table
_L2_OVER_HBM = 2.0
# a step of a loop waits on a product, a reduction and the next product: about 700 cycles
_STEP_US = 0.4
# the share of a step's loads that stages leave in the open, seen on an H100: benchmarks.sweep
_EXPOSED = {1: 1.4, 2: 1.12, 3: 1.0}
# more rows a warp than a 16-row product, or more carried words a thread, and registers spill over
_CROWDED = 1.25
_CARRIED_WORDS = 96
# seen there too, of dkv: benchmarks.backward --sweep
_PAIR_WORDS = 144
# factors of monomials, seen of based there: benchmarks.store
_FACTOR_WORDS = 64
# 128 keys a step of a 64-wide head, seen of flash there
_WIDE_STEP = 1.2
# 8-bit tensors: a widened tile of v, scores and what is carried leave no register past this many
# words a thread, and Triton 3.9 spills where 3.6 just does not: the compilers' figures
_WIDENED_WORDS = 120
# words a thread of a walk past which it spills, by the compiler, and what eight warps of it spill
# over four of half the chunk where it makes monomials; what it loses where it has an SM alone, and
# nobody fills in while it waits: seen on an H100
_WALK_WORDS = 150
_WIDE_MONOMIALS = 2.5
_ALONE = 1.5
# a walk of a sum has rows and keys of two chunks at once, not pairs of one: by the compiler's
# figures for cuda:90 eight warps spill 2,064 B a thread, four of half the chunk 1,900
_TWO_CHUNKS = 1.2
# what a chunk longer than 64 loses to barriers and to scores in registers, seen there too
_LONG_CHUNK = 1.6


def rank_us(step: PassPlan, request: Request) -> float:
    """Predicted microseconds of one pass, tile effects included."""
    tile = step.tile
    if step.kernel.name in {"decode", "combine", "recurrent"}:
        # what memory gives decides, and the planner orders tiles by how they ask for it
        return step.cost.time_us
    if step.kernel.name in {"dq", "dkv", "dqkv"}:
        return _pairs_us(step, request)
    if step.kernel.name in {"dquery", "dkey", "dpairs", "dvalue"}:
        # one program a chunk waits for its loads: more programs hide that, more warps do not
        return step.cost.time_us * step.num_warps
    if step.kernel.name.startswith("walk_"):
        return _walk_us(step, request)
    if step.kernel.name == "sum_output":
        return _sum_us(step, request)
    if "BS" in tile:
        return _attend_us(step, request)
    if "BC" in tile and "BV" in tile:
        return _chunk_us(step, request)
    # a short launch: what it costs is mostly that it is one
    return step.cost.time_us + 2.0


def why_behind(item: Plan, best: Plan, request: Request) -> str:
    """Why a legal plan is not the first."""
    own, least = (sum(rank_us(step, request) for step in p.passes) for p in (item, best))
    return f"ranked behind: {own:.0f} us with its tiles' cost, the first {least:.0f} us"


def _attend_us(step: PassPlan, request: Request) -> float:
    tile, work = step.tile, request.workload
    programs = work.batch * work.hq * ceil(work.tq / tile["BT"])
    pairs = step.cost.flops / (2.0 * sum(request.dims))
    steps = pairs / (tile["BT"] * tile["BS"])
    moved = steps * tile["BS"] * sum(request.dims) * DTYPES[request.dtype]
    busy = _total(step, request.device, programs, steps, moved)
    # more keys a step than columns of v: the exponentials wait in one place
    return busy * (_WIDE_STEP if tile["BS"] > tile["BV"] else 1.0)


def _pairs_us(step: PassPlan, request: Request) -> float:
    """A pass of the backward: `dq` streams key tiles past its rows, `dkv` query tiles past keys."""
    tile, work = step.tile, request.workload
    rows = step.kernel.name == "dq"
    held, streamed = ("BT", "BS") if rows else ("BS", "BT")
    heads, tokens = (work.hq, work.tq) if rows else (work.hkv, work.tk)
    programs = work.batch * heads * ceil(tokens / tile[held])
    columns = 2 * sum(request.dims) - (request.dims[1] if rows else 0)
    steps = step.cost.flops / (2.0 * columns) / (tile["BT"] * tile["BS"])
    moved = steps * tile[streamed] * sum(request.dims) * DTYPES[request.dtype]
    busy = _total(step, request.device, programs, steps, moved)
    if request.device.capability >= 90 and request.dtype != "fp32":
        # a warp group's product has 64 rows: with fewer it is not one
        busy *= max(1.0, 64 / tile[held])
    terms = bool(request.variant.terms)
    if terms or not rows:
        # dk, dv and two tiles of pairs at once, three where a polynomial and its slope wait for the
        # same product: past this many words a thread all of it spills
        pairs = (3 if terms else 2) * tile["BT"] * tile["BS"]
        words = carried_words(step.kernel.graph, tile) + pairs
        crowd = words / (_PAIR_WORDS * step.num_warps * request.device.warp_size)
        if crowd > 1.0:
            # two warp groups hide each other's spills
            busy *= crowd**2 * (8 / step.num_warps) ** 0.5
    return busy


def _chunk_us(step: PassPlan, request: Request) -> float:
    tile, work = step.tile, request.workload
    splits = ceil(request.dims[1] / tile["BV"])
    heads = work.hkv if step.kernel.name in {"state", "carry"} else work.hq
    steps = work.batch * heads * ceil(work.tk / tile["BC"]) * splits
    channels = 2 * request.dims[0] + 2 * tile["BV"]
    moved = steps * tile["BC"] * channels * DTYPES[request.dtype]
    programs = max(work.batch * heads * splits, 2 * request.device.sms)
    return _total(step, request.device, programs, steps, moved)


def _sum_us(step: PassPlan, request: Request) -> float:
    """Rows of a sum by chunks: the state once each, then some tiles of pairs of every term."""
    tile, work = step.tile, request.workload
    splits = ceil(request.dims[1] / tile["BV"])
    chunks = work.batch * work.hq * ceil(work.tk / tile["BC"]) * splits
    # the tiles of a window about a chunk and of a border, a walk each
    tiles = sum(tile["LAG"] * tile["BC"] / tile["BS"] + 1 for _ in step.kernel.walks)
    steps = chunks * (1 + tiles)
    moved = steps * tile["BS"] * sum(request.dims) * DTYPES[request.dtype]
    programs = max(work.batch * work.hq * splits, 2 * request.device.sms)
    busy = _total(step, request.device, programs, steps, moved)
    # the state, the rows, the factors of a tile of features and a tile of pairs, its weights beside
    # it: past what a walk of a backward holds this spills too, by the compiler's figures
    words = carried_words(step.kernel.graph, tile) + factor_words(step.kernel.graph, tile)
    words += 2 * tile["BT"] * tile["BS"]
    crowd = words / (_WALK_WORDS * step.num_warps * request.device.warp_size)
    return busy * max(1.0, crowd) ** 3


def _walk_us(step: PassPlan, request: Request) -> float:
    """A walk of a backward: every program reads what its share of the head needs, from L2."""
    tile, work = step.tile, request.workload
    splits = walk_splits(request.dims, tile)
    steps = work.batch * work.hq * ceil(work.tq / tile["BC"]) * splits
    channels = 2 * sum(request.dims) // splits + sum(request.dims)
    moved = steps * tile["BC"] * channels * DTYPES[request.dtype]
    programs = work.batch * work.hq * splits * walk_segments(request, splits)
    busy = _total(step, request.device, programs, steps, moved)
    words = walk_words(step.kernel.graph, tile) / (step.num_warps * request.device.warp_size)
    if words > _WALK_WORDS:
        busy *= (words / _WALK_WORDS) ** 3
    if step.num_warps > 4 and factor_words(step.kernel.graph, tile):
        busy *= _WIDE_MONOMIALS * (_TWO_CHUNKS if "LAG" in tile else 1.0)
    alone = step.num_warps > 4 or 2 * step.cost.sram_bytes > request.device.sram_bytes
    return busy * (_ALONE if alone else 1.0)


def walk_words(graph: KernelGraph, tile: Mapping[str, int]) -> int:
    """Words of what a walk has at once: its state, its outputs, and the pairs of a chunk."""
    outputs = {
        node.buffer: elements(node.shape, dict(tile))
        for node in graph.nodes(STEP)
        if node.op == "dot" and node.buffer in {"b_dq", "b_dk", "b_dv", "b_df"}
    }
    factors = factor_words(graph, tile)
    return carried_words(graph, tile) + sum(outputs.values()) + factors + 2 * tile["BC"] ** 2


def _total(step: PassPlan, device: Device, programs: float, steps: float, moved: float) -> float:
    fits_sram = device.sram_bytes // max(1, step.cost.sram_bytes)
    threads = step.num_warps * device.warp_size
    fits_registers = device.register_file // max(1, threads * min(step.cost.registers + 8, 255))
    resident = max(1, min(fits_sram, fits_registers, 2048 // threads))
    waves = ceil(programs / (device.sms * resident))
    lanes = min(programs, device.sms * resident)
    latency = _STEP_US * step.num_warps / 4
    waiting = steps / lanes * latency
    idle = waves * device.sms * resident / max(programs, 1.0)
    level2 = moved / (device.tbps * 1e12 * _L2_OVER_HBM) * 1e6
    compute: float = step.cost.time_us / _mma_share(step)
    busy: float = max(compute * max(1.0, idle**0.5), level2, waiting)
    # a fourth stage hides no more than a third
    return busy * _EXPOSED[min(step.num_stages, 3)] * _crowding(step, device)


def _crowding(step: PassPlan, device: Device) -> float:
    tile = step.tile
    rows = tile.get("BT", tile.get("BC", 16))
    factor = _CROWDED if rows > 16 * step.num_warps else 1.0
    if tile.get("BC", 0) > 64:
        factor *= _LONG_CHUNK
    threads = step.num_warps * device.warp_size
    factor *= max(1.0, factor_words(step.kernel.graph, tile) / (_FACTOR_WORDS * threads)) ** 2
    if carried_words(step.kernel.graph, tile) > _CARRIED_WORDS * threads:
        factor *= _CROWDED
    if widened_words(step.kernel.graph, tile) > _WIDENED_WORDS * threads:
        factor *= _CROWDED
    return factor


def _mma_share(step: PassPlan) -> float:
    """The share of the tensor cores' rate that a tile of that many rows a warp reaches."""
    tile = step.tile
    rows = tile.get("BT", tile.get("BC", 64))
    columns = tile.get("BS", tile.get("BV", 64))
    if step.kernel.name in {"dkv", "dqkv"}:
        rows, columns = columns, rows  # it holds keys, and its products have a row for each
    full: float = min(1.0, rows / 64) ** 0.6 * min(1.0, columns / 64) ** 0.4
    return 0.65 * full


def factor_words(graph: KernelGraph, tile: Mapping[str, int]) -> int:
    """Words of the factors of one tile of monomials, which are all there at once; 0 without."""
    sizes = [
        elements(node.shape, dict(tile))
        for node in graph.nodes()
        if node.op == "dot" and node.region != SETUP and node.buffer in {"b_x0", "b_x1"}
    ]
    return 2 * max(sizes, default=0)


def widened_words(graph: KernelGraph, tile: Mapping[str, int]) -> int:
    """Words at once where a tile is widened for a product, two elements of it a word; else 0."""
    nodes = [node for node in graph.nodes(STEP) if node.dtype in WIDENED]
    if not nodes:
        return 0
    scores = [n for n in graph.nodes(STEP) if n.op == "dot" and not n.into]
    pairs = max(elements(node.shape, dict(tile)) for node in scores)
    halves = max(elements(node.shape, dict(tile)) for node in nodes) // 2
    return carried_words(graph, tile) + pairs + halves


def carried_words(graph: KernelGraph, tile: Mapping[str, int]) -> int:
    """Accumulator words that the loop of a kernel carries."""
    carried = {
        node.buffer: elements(node.shape, dict(tile))
        for node in graph.nodes()
        if node.carried and node.shape
    }
    return sum(carried.values())
