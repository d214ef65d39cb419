"""SRAM of a pass: the buffers Triton's compiler makes of a graph, how long each lives, their peak.

The rules are the compiler's own, read from the TTGIR of 3.6.0 and 3.9.0; no constant belongs to a
variant. They are its rules for NVIDIA: on other backends they are an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attnc.codegen.device import Device
from attnc.codegen.graph import STEP, KernelGraph
from attnc.codegen.plan import BufferUse
from attnc.codegen.sram.buffers import Buffer, Buffers
from attnc.codegen.sram.layout import accumulator, coalesced
from attnc.codegen.sram.lifetime import place
from attnc.codegen.sram.lowering import Home, Product, Program, Value, lower
from attnc.codegen.sram.operand_buffers import OperandBuffers

Release = tuple[int, int]
NEWEST: Release = (3, 9)

# cp.async copies 4 bytes at least
_LEAST_COPY_BYTES = 4
# a reduction across warps that leaves one value a lane of one warp
_LANES_BYTES = 128


@dataclass(frozen=True, slots=True)
class Sram:
    """What a program takes, and the buffers that are live when it takes most of it."""

    nbytes: int
    buffers: tuple[BufferUse, ...]


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
    split = io == "fp32" and precision == "tf32x3"
    program = lower(graph, tiles, num_warps=num_warps, capability=device.capability, split=split)
    buffers = Buffers(program, io=io, num_warps=num_warps, split=split, device=device)
    rules = _TileBuffers(buffers, num_stages)
    # operands depend on where the loads wait
    rules.make_loads()
    OperandBuffers(buffers, release).make()
    rules.make_results()
    nbytes = place([buffer.span for buffer in buffers.made])
    return Sram(nbytes, _at_peak(buffers.made))


def _at_peak(buffers: list[Buffer]) -> tuple[BufferUse, ...]:
    moments = sorted({buffer.span.start for buffer in buffers})
    live = [[b for b in buffers if b.span.start <= now < b.span.end] for now in moments]
    fullest = max(live, key=lambda group: sum(b.span.nbytes for b in group), default=[])
    return tuple(buffer.use for buffer in fullest)


class _TileBuffers:
    """The rules for tiles that are loaded, reduced and stored."""

    def __init__(self, buffers: Buffers, num_stages: int) -> None:
        self._buffers, self._stages = buffers, num_stages
        self._program, self._split = buffers.program, buffers.split
        self._item, self._warps = buffers.item, buffers.warps

    def make_loads(self) -> None:
        """Make the buffers that loads go through or wait in."""
        multiplied = _multiplied(self._program)
        for value in self._program.values:
            if value.node.op == "load":
                self._load(value, value in multiplied)

    def make_results(self) -> None:
        """Make the buffers of reductions and stores."""
        for value in self._program.values:
            if value.node.op in {"reduce", "fold"} and len(value.shape) == 1:
                self._reduction(value)
            elif value.node.op == "store":
                self._store(value)

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
            self._buffers.in_registers.add(value)
            return
        if wants == {"turned", "straight"}:
            return  # two products want it in two orders: it is not fetched ahead at all
        if wants == {"sram"}:
            # wgmma reads the slot itself and is still reading when the next copy starts
            ahead += 1
            self._buffers.own_slot.add(value)
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
        self._buffers.add(
            value, value.shape, item, self._program.start, self._program.end, copies=copies
        )
        self._buffers.ringed.add(value)

    def _spread(self, value: Value, item: int) -> None:
        """A tile as large as the scores, loaded where its rows have no known stride."""
        reader = next((r for r in value.readers if r.home is Home.PRODUCT and r.product), None)
        if reader is not None:
            loaded = coalesced(value.tile, 16, self._warps)
            self._buffers.convert(
                value, loaded, self._buffers.accumulator(reader), item, reader.time
            )

    def _load_accumulator(self, value: Value) -> None:
        if len(value.shape) == 2 and value.product:
            loaded = coalesced(value.tile, 4, self._warps)
            self._buffers.convert(value, loaded, self._buffers.accumulator(value), 4, value.time)

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
            self._buffers.scratch(value, nbytes, value.time)

    def _store(self, value: Value) -> None:
        """An accumulator goes to memory in rows."""
        if len(value.shape) != 2 or not value.inputs:
            return
        source = value.inputs[0]
        if source.home is Home.PRODUCT and source.product:
            item = self._buffers.item_stored(value.node)
            held = accumulator(value.tile, source.product.version, source.grid)
            rows = coalesced(value.tile, item, self._warps)
            self._buffers.convert(source, held, rows, item, value.time)


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
