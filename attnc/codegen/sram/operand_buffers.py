"""The buffers of products' operands: from a load, from an accumulator, or made before the loop."""

from __future__ import annotations

from attnc.codegen.graph import SETUP
from attnc.codegen.plan import item_bytes
from attnc.codegen.sram.buffers import AFTER, BEFORE, Buffer, Buffers
from attnc.codegen.sram.layout import coalesced
from attnc.codegen.sram.lowering import Home, Use, Value

# from 3.9 on, a wide constant operand is split before it is converted, half of it kept in SRAM
_WIDE_CONSTANT = 128


class OperandBuffers:
    """The rules for operands, each of which is held once for all products that can share it."""

    def __init__(self, buffers: Buffers, release: tuple[int, int]) -> None:
        self._buffers, self._release = buffers, release
        self._program, self._split = buffers.program, buffers.split
        self._item, self._warps = buffers.item, buffers.warps
        # three products of tf32 want each operand twice: its leading half and the rest
        self._halves = 2 if buffers.split else 1
        self._shared: dict[object, Buffer] = {}

    def make(self) -> None:
        """Make the buffers of every operand of the program."""
        for product in self._program.products:
            for use in product.uses:
                self._operand(use)

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
            when = self._first_turned(use) + BEFORE if self._split else value.time
            self._hold(use, when, use.left if self._split else None)

    def _constant(self, use: Use) -> None:
        """An operand made before the loop: read in every step, or once and kept in registers."""
        item = self._buffers.item_of(use.product)
        value = use.value
        if use.product.version == 2:
            item = max(item, self._buffers.narrowest)
        key = (value, use.turned, use.operand.text)
        if key in self._shared:
            return
        start, end = value.time, self._program.end
        if value.node.op != "load" or value.node.address:
            for half in range(self._halves):
                self._shared[key] = self._buffers.add(value, use.shape, item, start + half, end)
            return
        # read where it is used if that is one place, else before the loop, for all places at once
        readers = [other for other in value.uses if other.operand.text == use.operand.text]
        once = len(readers) == 1
        # wgmma has no other place to read it from
        stays = use.product.version == 3 or (once and not self._split)
        until = end if stays else self._program.start
        self._shared[key] = self._buffers.add(value, use.shape, item, start, until)
        if self._split and once and self._release > (3, 6) and use.shape[1] >= _WIDE_CONSTANT:
            self._buffers.add(value, use.shape, item, start + AFTER, end)

    def _from_accumulator(self, use: Use) -> None:
        """From one product to the next: in registers where the warps hold what they need."""
        item = self._buffers.item_of(use.product)
        value, product = use.value, use.product
        held = (value.grid[1] == 1 and product.grid[1] == 1) if use.left else False
        if not use.left and product.version == 2:
            held = value.grid[0] == 1 and product.grid[0] == 1
        alike = value.product is not None and value.product.version == product.version
        if held and alike and not use.turned:
            return
        late = self._split or ".to(" in use.operand.text
        for half in range(self._halves):
            start = product.time + BEFORE + half if late else value.time + AFTER
            self._buffers.add(value, use.shape, item, start, product.time + AFTER)

    def _for_warp_groups(self, use: Use) -> None:
        """Operands of wgmma: from SRAM, but the left one also from registers."""
        value, load, product = use.value, use.value.load, use.product
        if load is value and load in self._buffers.ringed and not self._split:
            return
        if use.left and load is not None and self._split:
            if load not in self._buffers.ringed:
                loaded = coalesced(load.tile, self._item, self._warps)
                self._buffers.convert(
                    load, loaded, self._buffers.wanted(use), self._item, load.time + AFTER
                )
            return
        if use.left and load is not None and load is not value and load in self._buffers.ringed:
            return
        item = self._buffers.item_of(product)
        alone = len(self._program.looped) == 1 and product.uses[-1].value in self._buffers.own_slot
        if use.left and load is None and not self._split and alone and use.shape[1] > 16:
            held = coalesced(value.tile, item, self._warps)
            self._buffers.convert(
                value, held, self._buffers.wanted(use), item, product.time + BEFORE
            )
            return
        late = self._split or use.turned
        when = self._first_turned(use) + BEFORE if late else value.time + AFTER
        held_before = self._shared.get((value, use.turned, use.left))
        self._hold(use, when, use.left)
        if held_before is not None and not self._split:
            held_before.span.end = product.time + AFTER

    def _from_load(self, use: Use, load: Value) -> None:
        """Operands of mma.sync that are loads, or maps of loads: converted where they come in."""
        value, product = use.value, use.product
        # what is narrowed on the way is converted first, at its own width
        narrowed = ".to(" in use.operand.text
        item = item_bytes(load.node.dtype, self._buffers.io) if narrowed else self._item
        if load in self._buffers.ringed:
            return
        if use.turned and load in self._buffers.in_registers:
            self._buffers.add(value, use.shape, item, product.time + BEFORE, product.time + AFTER)
        elif use.turned:
            loaded = coalesced(load.tile, item, self._warps)
            self._buffers.convert(load, loaded, self._buffers.wanted(use), item, load.time + AFTER)
        elif (load, use.left) not in self._shared:
            start, end = load.time + AFTER, load.time + AFTER + 1
            if not self._split and load is value:
                mapped = [v for v in self._program.values if v.load is load]
                first = min(other.product.time for v in mapped for other in v.uses)
                start = start if first == product.time else product.time + BEFORE - 1
                end = product.time + AFTER
            made = self._buffers.add(value, use.shape, item, start, end)
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
        item = self._buffers.item_of(use.product)
        key = (use.value, use.turned, side)
        if key in self._shared:
            return
        end = use.product.time + AFTER
        for half in range(self._halves):
            self._shared[key] = self._buffers.add(use.value, use.shape, item, when + half, end)

    def _first_turned(self, use: Use) -> int:
        """When a transpose is made: until 3.6, where the value is first transposed."""
        times = [use.product.time]
        if use.turned and self._release <= (3, 6):
            times += [other.product.time for other in use.value.uses if other.turned]
        return min(times)
