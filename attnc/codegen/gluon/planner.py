"""Which plans the second backend has for a request, and why it has none for others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.features import power_of_two
from attnc.codegen.gluon.kernel import described
from attnc.codegen.gluon.worth import untimed
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, BufferUse, Cost, PassPlan, Plan, Rejected, Request
from attnc.codegen.planning.work import pass_work
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.codegen.warp_groups import GROUP_ROWS
from attnc.dsl.mask import MaskForm

# a product of a warp group has 64 rows and 256 columns at most, and copies swizzle 128 bytes
_LEAST_COLUMNS, _MOST_COLUMNS = 64, 256
# a backward's groups hold dk and dv, and no thread has registers for wider ones
_MOST_OF_TWO = 128
# arrays of barriers start at multiples of 16 bytes; what partitions are handed stands there too
BARRIER, _APART = 8, 16
_HANDED, _HANDED_ARGUMENT, _HANDED_PERSISTENT = 224, 16, 64
_BEHIND = "ranked behind: such kernels were slower on an H100"
UNTIMED = "ranked behind: no card has timed such kernels; attnc tune does"
# registers that a thread needs beside its tiles
_BESIDE = 24


@dataclass(frozen=True, slots=True)
class Tiles:
    """Keys a step, consumer groups of 64 rows, and stages of keys and values.

    A `persistent` program takes places one after the other: there are as many as multiprocessors,
    and what begins a place and what ends it run beside the products of its neighbours. Two
    `ordered` groups ask for their products in turn: one exponentiates while the other multiplies.
    """

    keys: int
    groups: int
    stages: int
    persistent: bool = False
    ordered: bool = False


# in order of what an H100 measured of such kernels, a list a width of the head; last, what none did
_CANDIDATES = {
    64: (
        Tiles(128, 2, 2, True), Tiles(128, 3, 3, True), Tiles(128, 2, 2), Tiles(128, 3, 3),
        Tiles(128, 3, 2), Tiles(128, 2, 3), Tiles(64, 2, 4), Tiles(64, 3, 3),
        Tiles(128, 2, 2, True, True), Tiles(128, 2, 2, False, True),
    ),
    128: (
        Tiles(128, 2, 2, True), Tiles(128, 2, 2), Tiles(64, 2, 3), Tiles(64, 2, 4),
        Tiles(64, 3, 2), Tiles(128, 2, 2, True, True), Tiles(128, 2, 2, False, True),
    ),
    256: (Tiles(64, 2, 2), Tiles(32, 2, 3), Tiles(64, 2, 1), Tiles(32, 2, 2, True)),
}  # fmt: skip
# where tiles lie in listed blocks of 64 keys
_OF_LISTS = {64: (Tiles(64, 2, 4, True),), 128: (Tiles(64, 2, 3, True),)}


def refusal(request: Request, algebra: Algebra) -> str:
    """Why the backend cannot take a request; empty where it can."""
    device = request.device
    if device.target != "cuda:90":
        return f"its kernels are made for cuda:90, not for {device.target}"
    if request.decode:
        return "a step is bound by memory, and triton's kernel of one takes one row"
    if algebra.family != "softmax":
        return f"it has the softmax family alone, not the {algebra.family} family"
    if request.dtype not in {"bf16", "fp16"}:
        return f"it has 16-bit tensors alone, not {request.dtype}"
    if algebra.phi is not None:
        return "its copies go past registers, where the feature map would be applied"
    if algebra.value is not None:
        return "its copies go past registers, where the declared value would be made of v"
    mask = _against_mask(algebra.mask)
    if mask:
        return mask
    wide = [tile_columns(dim) for dim in request.dims]
    most = _MOST_COLUMNS if request.phase == "forward" else _MOST_OF_TWO
    if max(wide) > most:
        return f"a head of {max(request.dims)} columns passes {most}"
    if wide[0] != wide[1]:
        return f"tiles of {wide[0]} and {wide[1]} columns share no buffer of rows"
    if any(dim % 8 for dim in request.dims):
        return "rows of a tensor have to be multiples of 16 bytes for the copy engine"
    return ""


def _against_mask(mask: MaskForm) -> str:
    if not mask.clauses:
        return "the mask is empty: no tile is visited"
    least = 2 * GROUP_ROWS
    if any(table.size < least for table in mask.blocks):
        return f"tiles of {least} rows lie in no block of {mask.blocks[0].size}"
    if mask.packed:
        return "its grid and its copies know one sequence a batch entry"
    return ""


def tile_columns(dim: int) -> int:
    """Columns of a head's tile: a power of two, one copy wide at least."""
    return max(_LEAST_COLUMNS, power_of_two(dim))


@dataclass(frozen=True, slots=True)
class Steps:
    """The passes that fit in order of rank, and those that do not, with reasons."""

    fitting: tuple[PassPlan, ...]
    rejected: tuple[Rejected, ...]


def gluon_plans(
    request: Request,
    algebra: Algebra,
    steps: Steps,
    helpers: tuple[str, ...],
    form: tuple[str, str],
    before: tuple[PassPlan, ...] = (),
) -> tuple[Plan, ...]:
    """A plan for each pass that fits, behind those that list tiles `before` it.

    `form` is the form and why it is taken.
    """
    ranked = [
        Plan(
            variant=request.variant,
            algebra=algebra,
            features=None,
            device=request.device,
            dims=request.dims,
            dtype=request.dtype,
            form=form[0],
            form_reason=form[1],
            stateful=False,
            precision=request.precision,
            workload=request.workload,
            passes=(*before, step),
            helpers=helpers,
            programs=request.device.sms * 2,
            min_chunks=4,
            backend="gluon",
        )
        for step in steps.fitting
    ]
    unlike = untimed(request.variant, algebra.mask)
    behind = tuple(
        Rejected(str(step), UNTIMED if unlike or "ORDERED" in step.tile else _BEHIND)
        for step in steps.fitting[1:]
    )
    return tuple(replace(item, rejected=(*steps.rejected, *behind)) for item in ranked)


def gluon_steps(request: Request, algebra: Algebra, kernel: Kernel) -> Steps:
    """Every candidate at the request's head dims, held against the device's SRAM."""
    columns = tile_columns(request.dims[0])
    found: list[PassPlan] = []
    rejected: list[Rejected] = []
    lists = tile_lists(algebra.mask, of_rows=True)
    for tiles in _in_order(columns, algebra, lists):
        if lists is not None and not lists.takes(GROUP_ROWS * tiles.groups, tiles.keys):
            continue
        own = described(kernel, persistent=tiles.persistent)
        step = _step(request, own, columns, tiles)
        needed, budget = step.cost.sram_bytes, request.device.sram_bytes
        if needed > budget:
            reason = f"needs {needed:,} B of SRAM, the budget is {budget:,} B"
            rejected.append(Rejected(str(step), reason))
        else:
            found.append(step)
    return Steps(tuple(found), tuple(rejected))


def _in_order(columns: int, algebra: Algebra, lists: TileLists | None) -> tuple[Tiles, ...]:
    tiles = _CANDIDATES[columns]
    if lists is not None and lists.streamed == 64:
        return (*_OF_LISTS.get(columns, ()), *tiles)
    if columns == 64 and algebra.mask.clauses == ((),):
        # three groups share each tile of keys; along a mask's edge their rows waste more of it
        widest = {Tiles(128, 3, 3), Tiles(128, 3, 3, True)}
        return tuple(sorted(tiles, key=lambda item: (not item.persistent, item not in widest)))
    return tiles


def aligned(nbytes: int) -> int:
    """Bytes of SRAM that an array of barriers takes with what stands behind it."""
    return -(-nbytes // _APART) * _APART


def _step(request: Request, kernel: Kernel, columns: int, tiles: Tiles) -> PassPlan:
    rows = GROUP_ROWS * tiles.groups
    sizes = {"BT": rows, "BS": tiles.keys, "BK": columns, "BV": columns, "NW": tiles.groups}
    if tiles.persistent:
        sizes["P"] = request.device.sms
    if tiles.ordered:
        sizes["ORDERED"] = 1
    item = DTYPES[request.dtype]
    keys = tiles.keys * columns * item
    of_rows = (2 if tiles.persistent else 1) * aligned(tiles.groups * BARRIER)
    barriers = of_rows + 4 * aligned(tiles.stages * BARRIER)
    barriers += aligned(tiles.groups * BARRIER) if tiles.ordered else 0
    more = sum(1 + len(tensor.strides) for tensor in kernel.tensors if tensor.given)
    handed = _HANDED + 4 * (tiles.groups + 1) + more * _HANDED_ARGUMENT
    handed += _HANDED_PERSISTENT if tiles.persistent else 0
    handed += _HANDED_ARGUMENT if tiles.ordered else 0
    written = ((rows, columns), request.dtype, "sram", rows * columns * item)
    buffers = (
        BufferUse("b_q", *written),
        BufferUse("b_k", (tiles.keys, columns), request.dtype, "sram", keys, tiles.stages),
        BufferUse("b_v", (tiles.keys, columns), request.dtype, "sram", keys, tiles.stages),
        *([BufferUse("b_out", *written)] if tiles.persistent else []),
        BufferUse("bars", (barriers,), "int8", "sram", barriers),
        BufferUse("args", (handed,), "int8", "sram", handed),
    )
    # scores, weights in half the space, and the accumulator of 64 rows on 128 threads
    words = (tiles.keys + tiles.keys // 2 + columns) * GROUP_ROWS // 128
    hbm_bytes, flops = pass_work(request, kernel, sizes)
    seconds = max(hbm_bytes / (request.device.tbps * 1e12), flops / (request.device.tflops * 1e12))
    cost = Cost(
        sum(use.nbytes * use.copies for use in buffers),
        _BESIDE + words,
        int(hbm_bytes),
        int(flops),
        seconds * 1e6,
        buffers,
    )
    return PassPlan(kernel, tuple(sizes.items()), 4 * (tiles.groups + 1), tiles.stages, cost)
