"""SRAM of a pass: the buffers Triton's compiler makes of a graph, how long each lives, their peak.

The rules are the compiler's own, read from the TTGIR of 3.6.0 and 3.9.0; no constant belongs to a
variant. They are its rules for NVIDIA: on other backends they are an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attnc.codegen.device import Device
from attnc.codegen.graph import SETUP, STEP, KernelGraph
from attnc.codegen.layout import Layout, accumulator, coalesced, left_operand, right_operand
from attnc.codegen.lifetime import Span, place
from attnc.codegen.lowering import Home, Product, Program, Use, Value, lower
from attnc.codegen.plan import DTYPES, BufferUse
from attnc.codegen.swizzle import scratch_bytes

Release = tuple[int, int]
NEWEST: Release = (3, 9)

# where inside a statement things happen, in ticks after it began
_BEFORE, _AFTER = -4, 1
# cp.async copies 4 bytes at least
_LEAST_COPY_BYTES = 4
# a reduction across warps that leaves one value a lane of one warp
_LANES_BYTES = 128
# from 3.9 on, a wide constant operand is split before it is converted, half of it kept in SRAM
_WIDE_CONSTANT = 128


@dataclass(frozen=True, slots=True)
class Sram:
    """What a program takes, and the buffers that are live when it takes most of it."""

    nbytes: int
    buffers: tuple[BufferUse, ...]


@dataclass(eq=False, slots=True)
class _Buffer:
    use: BufferUse
    span: Span


def sram_of(
    graph: KernelGraph,
    tiles: Mapping[str, int],
    *,
    io: str,
    num_warps: int,
    num_stages: int,
    device: Device,
    precision: str = "tf32x3",
    release: Release = NEWEST,
) -> Sram:
    """The SRAM of a graph with its tiles, as Triton `release` would allocate it."""
    made = _Buffers(graph, tiles, io, num_warps, num_stages, device, precision, release)
    buffers = made.all()
    nbytes = place([buffer.span for buffer in buffers])
    return Sram(nbytes, _at_peak(buffers))


def _at_peak(buffers: list[_Buffer]) -> tuple[BufferUse, ...]:
    moments = sorted({buffer.span.start for buffer in buffers})
    live = [[b for b in buffers if b.span.start <= now < b.span.end] for now in moments]
    fullest = max(live, key=lambda group: sum(b.span.nbytes for b in group), default=[])
    return tuple(buffer.use for buffer in fullest)


class _Buffers:
    """The buffers of one program, collected rule by rule."""

    def __init__(
        self,
        graph: KernelGraph,
        tiles: Mapping[str, int],
        io: str,
        num_warps: int,
        num_stages: int,
        device: Device,
        precision: str,
        release: Release,
    ) -> None:
        self._io, self._warps, self._stages = io, num_warps, num_stages
        self._item = DTYPES[io]
        self._release = release
        self._matrix_stores = device.capability >= 90
        # three products of tf32 want each operand twice: its leading half and the rest
        self._split = io == "fp32" and precision == "tf32x3"
        self._halves = 2 if self._split else 1
        self._program: Program = lower(
            graph,
            tiles,
            num_warps=num_warps,
            capability=device.capability,
            split=self._split,
        )
        self._made: list[_Buffer] = []
        self._ringed: set[Value] = set()
        self._own_slot: set[Value] = set()
        self._in_registers: set[Value] = set()
        self._shared: dict[object, _Buffer] = {}

    def all(self) -> list[_Buffer]:
        """Every buffer of the program."""
        multiplied = _multiplied(self._program)
        for value in self._program.values:
            if value.node.op == "load":
                self._load(value, value in multiplied)
        for product in self._program.products:
            for use in product.uses:
                self._operand(use)
        for value in self._program.values:
            if value.node.op in {"reduce", "fold"} and len(value.shape) == 1:
                self._reduction(value)
            elif value.node.op == "store":
                self._store(value)
        return self._made

    # loads

    def _load(self, value: Value, multiplied: bool) -> None:
        """A load that a product of the loop waits for is fetched `num_stages - 1` steps ahead."""
        if value.home is Home.PRODUCT:
            self._load_accumulator(value)
        if value.node.region != STEP or not value.shape or not multiplied:
            return
        ahead = self._stages - 1
        if value.node.dtype != "io" or value.home is not Home.MEMORY:
            item = 8 if value.node.dtype == "fp64" else 4
            if ahead > 0:
                self._ring(value, item, ahead)
            elif value.home is Home.MEMORY:
                self._spread(value, item)
            return
        if ahead > 0:
            self._prefetch(value, ahead)

    def _prefetch(self, value: Value, ahead: int) -> None:
        wants = set(self._wants(value))
        if wants == {"turned"} and self._item < _LEAST_COPY_BYTES:
            # its columns lie apart in SRAM: no copy is wide enough, so it waits in registers
            self._in_registers.add(value)
            return
        if wants == {"turned", "straight"}:
            return  # two products want it in two orders: it is not fetched ahead at all
        if wants == {"sram"}:
            # wgmma reads the slot itself and is still reading when the next copy starts
            ahead += 1
            self._own_slot.add(value)
        self._ring(value, self._item, ahead)

    def _wants(self, value: Value) -> Iterator[str]:
        """How the readers of a load want it: from SRAM, in a product's registers, or as loaded."""
        for mapped in self._program.values:
            if mapped.load is not value:
                continue
            for use in mapped.uses:
                if use.product.version == 3 and not (self._split and use.left):
                    direct = mapped is value and not self._split
                    yield "sram" if direct else "loaded"
                else:
                    yield "turned" if use.turned and use.left else "straight"
            if any(reader.load is not value for reader in mapped.readers):
                yield "loaded"

    def _ring(self, value: Value, item: int, copies: int) -> None:
        self._add(value, value.shape, item, self._program.start, self._program.end, copies=copies)
        self._ringed.add(value)

    def _spread(self, value: Value, item: int) -> None:
        """A tile as large as the scores, loaded where its rows have no known stride."""
        reader = next((r for r in value.readers if r.home is Home.PRODUCT and r.product), None)
        if reader is not None:
            loaded = coalesced(value.tile, 16, self._warps)
            self._convert(value, loaded, self._accumulator(reader), item, reader.time)

    def _load_accumulator(self, value: Value) -> None:
        if len(value.shape) == 2 and value.product:
            loaded = coalesced(value.tile, 4, self._warps)
            self._convert(value, loaded, self._accumulator(value), 4, value.time)

    # operands of products

    def _operand(self, use: Use) -> None:
        value = use.value
        if value.node.region == SETUP and use.product.in_loop and not value.node.carried:
            self._constant(use)
        elif value.home is Home.PRODUCT:
            self._from_accumulator(use)
        elif use.product.version == 3:
            self._for_warp_groups(use)
        elif value.load is not None:
            self._from_load(use, value.load)
        elif not self._maps_an_operand(use):
            when = self._first_turned(use) + _BEFORE if self._split else value.time
            self._hold(use, when, use.left if self._split else None)

    def _constant(self, use: Use) -> None:
        """An operand made before the loop: read in every step, or once and kept in registers."""
        value = use.value
        key = (value, use.turned, use.operand.text)
        if key in self._shared:
            return
        start, end = value.time, self._program.end
        if value.node.op != "load" or value.node.address:
            for half in range(self._halves):
                self._shared[key] = self._add(value, use.shape, self._item, start + half, end)
            return
        # read where it is used if that is one place, else before the loop, for all places at once
        readers = [other for other in value.uses if other.operand.text == use.operand.text]
        once = len(readers) == 1
        # wgmma has no other place to read it from
        stays = use.product.version == 3 or (once and not self._split)
        until = end if stays else self._program.start
        self._shared[key] = self._add(value, use.shape, self._item, start, until)
        if self._split and once and self._release > (3, 6) and use.shape[1] >= _WIDE_CONSTANT:
            self._add(value, use.shape, self._item, start + _AFTER, end)

    def _from_accumulator(self, use: Use) -> None:
        """From one product to the next: in registers where the warps hold what they need."""
        value, product = use.value, use.product
        held = (value.grid[1] == 1 and product.grid[1] == 1) if use.left else False
        if not use.left and product.version == 2:
            held = value.grid[0] == 1 and product.grid[0] == 1
        alike = value.product is not None and value.product.version == product.version
        if held and alike and not use.turned:
            return
        late = self._split or ".to(" in use.operand.text
        for half in range(self._halves):
            start = product.time + _BEFORE + half if late else value.time + _AFTER
            self._add(value, use.shape, self._item, start, product.time + _AFTER)

    def _for_warp_groups(self, use: Use) -> None:
        """Operands of wgmma: from SRAM, but the left one also from registers."""
        value, load, product = use.value, use.value.load, use.product
        if load is value and load in self._ringed and not self._split:
            return
        if use.left and load is not None and self._split:
            if load not in self._ringed:
                loaded = coalesced(load.tile, self._item, self._warps)
                self._convert(load, loaded, self._wanted(use), self._item, load.time + _AFTER)
            return
        if use.left and load is not None and load is not value and load in self._ringed:
            return
        alone = len(self._program.looped) == 1 and product.uses[-1].value in self._own_slot
        if use.left and load is None and not self._split and alone and use.shape[1] > 16:
            held = coalesced(value.tile, self._item, self._warps)
            self._convert(value, held, self._wanted(use), self._item, product.time + _BEFORE)
            return
        late = self._split or use.turned
        when = self._first_turned(use) + _BEFORE if late else value.time + _AFTER
        held_before = self._shared.get((value, use.turned, use.left))
        self._hold(use, when, use.left)
        if held_before is not None and not self._split:
            held_before.span.end = product.time + _AFTER

    def _from_load(self, use: Use, load: Value) -> None:
        """Operands of mma.sync that are loads, or maps of loads: converted where they come in."""
        value, product = use.value, use.product
        if load in self._ringed:
            return
        if use.turned and load in self._in_registers:
            self._add(value, use.shape, self._item, product.time + _BEFORE, product.time + _AFTER)
        elif use.turned:
            loaded = coalesced(load.tile, self._item, self._warps)
            self._convert(load, loaded, self._wanted(use), self._item, load.time + _AFTER)
        elif (load, use.left) not in self._shared:
            start, end = load.time + _AFTER, load.time + _AFTER + 1
            if not self._split and load is value:
                mapped = [v for v in self._program.values if v.load is load]
                first = min(other.product.time for v in mapped for other in v.uses)
                start = start if first == product.time else product.time + _BEFORE - 1
                end = product.time + _AFTER
            made = self._add(value, use.shape, self._item, start, end)
            self._shared[load, use.left] = made

    def _maps_an_operand(self, use: Use) -> bool:
        """Whether a product has the value's source in its registers, to be mapped there."""
        if self._split or any(source.of_indices for source in use.value.inputs):
            return False
        sources = [source for source in use.value.inputs if len(source.shape) == 2]
        return len(sources) == 1 and any(
            other.left == use.left and other.turned == use.turned and other.product.version == 2
            for other in sources[0].uses
        )

    def _hold(self, use: Use, when: int, side: bool | None) -> None:
        """Put an operand in SRAM, once for all products that want it the same way."""
        key = (use.value, use.turned, side)
        if key in self._shared:
            return
        end = use.product.time + _AFTER
        for half in range(self._halves):
            self._shared[key] = self._add(use.value, use.shape, self._item, when + half, end)

    def _first_turned(self, use: Use) -> int:
        """When a transpose is made: until 3.6, where the value is first transposed."""
        times = [use.product.time]
        if use.turned and self._release <= (3, 6):
            times += [other.product.time for other in use.value.uses if other.turned]
        return min(times)

    # reductions and stores

    def _reduction(self, value: Value) -> None:
        """Partial results of several warps meet in SRAM."""
        source = next((source for source in value.inputs if len(source.shape) == 2), None)
        if source is None or value.node.region != STEP:
            return
        along_rows = value.node.shape[0] == source.node.shape[0]
        nbytes = 0
        if source.home is Home.PRODUCT:
            down, across = source.grid
            if along_rows and across > 1:
                nbytes = value.shape[0] * across * 4
            elif not along_rows and down > 1 and source.shape[0] > 16:
                nbytes = _LANES_BYTES
        elif not along_rows:
            nbytes = value.shape[0] * self._warps * 4 // max(1, 4 // self._item)
        if nbytes:
            self._scratch(value, nbytes, value.time)

    def _store(self, value: Value) -> None:
        """An accumulator goes to memory in rows."""
        if len(value.shape) != 2 or not value.inputs:
            return
        source = value.inputs[0]
        if source.home is Home.PRODUCT and source.product:
            item = self._item if value.node.tensor == "o" else 4
            held = accumulator(value.tile, source.product.version, source.grid)
            rows = coalesced(value.tile, item, self._warps)
            self._convert(source, held, rows, item, value.time)

    # what the rules are made of

    def _accumulator(self, value: Value) -> Layout:
        assert value.product is not None, "an accumulator is of some product"
        return accumulator(value.tile, value.product.version, value.grid)

    def _wanted(self, use: Use) -> Layout:
        """The layout that a product's registers want of the value itself, before its transpose."""
        down, across = use.product.grid
        if use.left:
            layout = left_operand(use.shape, self._item, down)
        else:
            layout = right_operand(use.shape, self._item, across)
        return layout.transposed if use.turned else layout

    def _convert(self, value: Value, source: Layout, target: Layout, item: int, when: int) -> None:
        nbytes = scratch_bytes(source, target, item, matrix_stores=self._matrix_stores)
        self._scratch(value, nbytes, when)

    def _scratch(self, value: Value, nbytes: int, when: int) -> None:
        dtype = self._io if value.node.dtype == "io" else "fp32"
        use = BufferUse(value.node.buffer, value.shape, dtype, "scratch", nbytes)
        self._made.append(_Buffer(use, Span(nbytes, when, when + 1)))

    def _add(
        self,
        value: Value,
        shape: tuple[int, ...],
        item: int,
        start: int,
        end: int,
        *,
        copies: int = 1,
    ) -> _Buffer:
        nbytes = item
        for side in shape:
            nbytes *= side
        dtype = self._io if item == self._item else f"fp{8 * item}"
        use = BufferUse(value.node.buffer, shape, dtype, "sram", nbytes, copies)
        buffer = _Buffer(use, Span(nbytes * copies, start, end))
        self._made.append(buffer)
        return buffer


def _multiplied(program: Program) -> set[Value]:
    """Values that some product of the loop multiplies, through anything but an accumulator."""
    seen: set[Value] = set()
    waiting = [use.value for product in program.looped for use in product.uses]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        made_by: Product | None = value.product if value.node.op == "dot" else None
        waiting.extend(value.inputs if made_by is None else ())
        if made_by is not None and made_by.node is value.node:
            waiting.extend(use.value for use in made_by.uses)
    return seen
