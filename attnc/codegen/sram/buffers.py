"""The buffers of one program: what each holds, how many bytes, and from when until when."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.device import Device
from attnc.codegen.graph import Node
from attnc.codegen.plan import DTYPES, BufferUse, item_bytes
from attnc.codegen.sram.layout import Layout, accumulator, left_operand, right_operand
from attnc.codegen.sram.lifetime import Span
from attnc.codegen.sram.lowering import Product, Program, Use, Value
from attnc.codegen.sram.swizzle import scratch_bytes

# where inside a statement things happen, in ticks after it began
BEFORE, AFTER = -4, 1
# types that a tile of narrower tensors is widened to before a product
WIDENED = ("bf16", "fp16")


@dataclass(eq=False, slots=True)
class Buffer:
    """What a buffer holds, and when."""

    use: BufferUse
    span: Span


class Buffers:
    """The buffers of one program as they are made, and where its loads wait to be read."""

    def __init__(
        self, program: Program, *, io: str, num_warps: int, split: bool, device: Device
    ) -> None:
        self.program, self.warps, self.split = program, num_warps, split
        self.item = DTYPES[io]
        self.made: list[Buffer] = []
        # loads that are fetched ahead, those of them that wgmma reads itself, and those that wait
        # in registers instead
        self.ringed: set[Value] = set()
        self.own_slot: set[Value] = set()
        self.in_registers: set[Value] = set()
        self.io = io
        self._matrix_stores = device.capability >= 90
        # but for sm_89, no mma.sync takes bytes: what meets one is widened to fp16 first
        self.narrowest = 1 if device.capability == 89 else 2

    def accumulator(self, value: Value) -> Layout:
        """The layout of a value that a product leaves in its accumulator."""
        assert value.product is not None, "an accumulator is of some product"
        return accumulator(value.tile, value.product.version, value.grid)

    def item_of(self, product: Product) -> int:
        """Bytes of an element of a product's operands: the tensors', or those that v is widened to.

        Both operands have one type, and what is made in an accumulator is converted to the other's.
        """
        fixed = [use.value.node.dtype for use in product.uses]
        return next((item_bytes(dtype, self.io) for dtype in fixed if dtype in WIDENED), self.item)

    def item_stored(self, node: Node) -> int:
        """Bytes of an element that a statement stores."""
        if node.tensor != "o":
            return 4
        return self.item if node.dtype == "acc" else item_bytes(node.dtype, self.io)

    def wanted(self, use: Use) -> Layout:
        """The layout that a product's registers want of the value itself, before its transpose."""
        down, across = use.product.grid
        item = self.item_of(use.product)
        if use.left:
            layout = left_operand(use.shape, item, down)
        else:
            layout = right_operand(use.shape, item, across)
        return layout.transposed if use.turned else layout

    def convert(self, value: Value, source: Layout, target: Layout, item: int, when: int) -> None:
        """Add the scratch of a conversion of layouts."""
        nbytes = scratch_bytes(source, target, item, matrix_stores=self._matrix_stores)
        self.scratch(value, nbytes, when)

    def scratch(self, value: Value, nbytes: int, when: int) -> None:
        """Add scratch that lives for one statement."""
        dtype = self.io if value.node.dtype == "io" else "fp32"
        use = BufferUse(value.node.buffer, value.shape, dtype, "scratch", nbytes)
        self.made.append(Buffer(use, Span(nbytes, when, when + 1)))

    def add(
        self,
        value: Value,
        shape: tuple[int, ...],
        item: int,
        start: int,
        end: int,
        *,
        copies: int = 1,
    ) -> Buffer:
        """Add a tile that stays from `start` until `end`."""
        nbytes = item
        for side in shape:
            nbytes *= side
        dtype = self.io if item == self.item else f"fp{8 * item}"
        dtype = value.node.dtype if value.node.dtype in WIDENED else dtype
        use = BufferUse(value.node.buffer, shape, dtype, "sram", nbytes, copies)
        buffer = Buffer(use, Span(nbytes * copies, start, end))
        self.made.append(buffer)
        return buffer
