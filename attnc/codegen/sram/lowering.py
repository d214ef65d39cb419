"""What the compiler makes of a graph: values with a home, and products with an instruction.

A value lives where it came from: as loaded from memory, in the accumulator of a product, or in
whatever layout computed it. Source: Triton's passes `accelerate-matmul`, `optimize-dot-operands`
and `remove-layout-conversions`, read from the TTGIR of 3.6.0 and 3.9.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from attnc.codegen.graph import REGIONS, SETUP, STEP, KernelGraph, Node, Operand

TICKS = 10  # moments of a statement, so that what happens inside one has an order


class Home(Enum):
    """Where a value is held, and so what another place for it costs."""

    MEMORY = "a tile as loaded"
    PRODUCT = "an accumulator, or elementwise of one"
    THREADS = "computed in a layout of its own"


@dataclass(eq=False, slots=True)
class Value:
    """What one statement makes.

    `load` is the load that it is an elementwise map of, if nothing else goes in that would have to
    move between threads: the compiler then converts the load and maps afterwards.
    """

    node: Node
    shape: tuple[int, ...]
    time: int
    inputs: tuple[Value, ...]
    home: Home = Home.THREADS
    load: Value | None = None
    product: Product | None = None
    of_indices: bool = False
    readers: list[Value] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    @property
    def tile(self) -> tuple[int, int]:
        """The shape of a two-dimensional value."""
        rows, columns = self.shape
        return rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        """Warps over (rows, columns) of a value in an accumulator."""
        return self.product.grid if self.product else (1, 1)


@dataclass(eq=False, slots=True)
class Use:
    """One side of a product."""

    value: Value
    operand: Operand
    shape: tuple[int, int]
    left: bool
    product: Product

    @property
    def turned(self) -> bool:
        """Whether the product reads the transpose of the value."""
        return self.operand.transposed


@dataclass(eq=False, slots=True)
class Product:
    """A matrix product: `version` 2 is mma.sync, 3 wgmma; `grid` its warps over (rows, columns)."""

    node: Node
    time: int
    rows: int
    columns: int
    version: int
    grid: tuple[int, int] = (1, 1)
    uses: tuple[Use, ...] = ()

    @property
    def in_loop(self) -> bool:
        """Whether every step repeats it."""
        return self.node.region == STEP


@dataclass(frozen=True, slots=True)
class Program:
    """A graph in program order; the loop runs from `start` until `end`."""

    values: tuple[Value, ...]
    products: tuple[Product, ...]
    start: int
    end: int

    @property
    def looped(self) -> tuple[Product, ...]:
        """The products of the loop."""
        return tuple(product for product in self.products if product.in_loop)


def lower(
    graph: KernelGraph,
    tiles: Mapping[str, int],
    *,
    num_warps: int,
    capability: int,
    split: bool,
) -> Program:
    """Values and products of a graph; `split` where each product is three of tf32."""
    lowering = _Lowering(tiles, num_warps, capability)
    for region in REGIONS:
        for node in graph.nodes(region):
            lowering.add(node)
    _choose_grids(lowering.products, num_warps, split)
    _tie_accumulators(lowering)
    times = [value.time for value in lowering.values if value.node.region == STEP]
    start, end = (min(times) - 1, max(times) + TICKS - 1) if times else (0, 0)
    return Program(tuple(lowering.values), tuple(lowering.products), start, end)


class _Lowering:
    def __init__(self, tiles: Mapping[str, int], num_warps: int, capability: int) -> None:
        self._tiles, self._warps, self._capability = tiles, num_warps, capability
        self._latest: dict[str, Value] = {}
        self.values: list[Value] = []
        self.products: list[Product] = []
        self._time = 0

    def add(self, node: Node) -> None:
        self._time += TICKS
        inputs = tuple(self._latest[name] for name in node.reads if name in self._latest)
        value = Value(node, self._size(node.shape), self._time, inputs)
        if node.op == "dot":
            self._multiply(node, value)
        elif node.op == "load":
            _place_load(value)
        elif len(value.shape) == 2:
            _place_tile(value)
        else:
            value.of_indices = len(value.shape) == 1 and _is_of_indices(value)
        for source in value.inputs:
            source.readers.append(value)
        self.values.append(value)
        if node.buffer:
            self._latest[node.buffer] = value

    def _size(self, shape: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self._tiles.get(letter) or int(letter) for letter in shape)

    def _multiply(self, node: Node, value: Value) -> None:
        assert node.left is not None and node.right is not None, "a product has two operands"
        rows, inner = self._size(node.left.shape)
        columns = self._size(node.right.shape)[1]
        # a warp group takes 64 rows at least; Blackwell's instruction wants its operands alike
        grouped = self._capability >= 90 and rows >= 64 and self._warps % 4 == 0
        product = Product(node, self._time, rows, columns, 3 if grouped else 2)
        sides = ((node.left, (rows, inner), True), (node.right, (inner, columns), False))
        product.uses = tuple(
            Use(self._latest[operand.buffer], operand, shape, left, product)
            for operand, shape, left in sides
            if operand.buffer in self._latest
        )
        for use in product.uses:
            use.value.uses.append(use)
        value.home, value.product = Home.PRODUCT, product
        self.products.append(product)


def _place_load(value: Value) -> None:
    if len(value.shape) != 2:
        return
    if value.node.carried:
        value.home = Home.PRODUCT
    elif value.node.address:
        value.home, value.load = Home.MEMORY, value


def _place_tile(value: Value) -> None:
    """The home of an elementwise statement: its accumulator's, else its load's, else its own."""
    sources = [source for source in value.inputs if len(source.shape) == 2]
    products = [source for source in sources if source.home is Home.PRODUCT]
    if products or (value.node.carried and not sources):
        value.home = Home.PRODUCT
        value.product = next((source.product for source in products if source.product), None)
        return
    loads = {source.load for source in sources}
    if len(loads) != 1 or None in loads or _is_guarded(value):
        return
    # a vector of indices can be made in one layout alone: it holds the map where it is
    if not any(source.of_indices for source in value.inputs):
        value.load = loads.pop()


def _is_guarded(value: Value) -> bool:
    """Whether padding is cleared after the map, by a mask made of indices."""
    if value.node.op == "map" and value.node.masked_only:
        return True
    return value.node.op == "map" and any(
        source.node.op == "load" and source.node.guard and value.node.buffer == source.node.buffer
        for source in value.inputs
    )


def _is_of_indices(value: Value) -> bool:
    if value.node.op != "map" or any(len(source.shape) == 2 for source in value.inputs):
        return False
    vectors = [source for source in value.inputs if source.shape]
    return not vectors or any(source.of_indices for source in vectors)


def _choose_grids(products: list[Product], num_warps: int, split: bool) -> None:
    """Warps over each product: products that meet in a loop share their rows or their columns."""
    looped = [product for product in products if product.in_loop]
    chained = split or len(looped) > 1
    narrow = [product for product in looped if product.version == 2]
    for product in narrow:
        # the compiler meets the last one first, and the others follow it
        last = narrow[-1]
        tall = last.rows >= last.columns
        product.grid = (num_warps, 1) if tall else (1, num_warps)
        if not chained:
            product.grid = _balanced(product, num_warps)
    for place, product in enumerate(looped):
        if product.version == 3:
            alone = not split and not looped[place + 1 :]
            product.grid = _grouped(product, num_warps) if alone else (num_warps, 1)


def _balanced(product: Product, num_warps: int) -> tuple[int, int]:
    """As many 16-row tiles a warp as 8-column ones."""
    down, across = 1, 1
    rows, columns = -(-product.rows // 16), -(-product.columns // 8)
    while down * across < num_warps:
        if rows >= columns:
            down, rows = down * 2, max(1, rows // 2)
        else:
            across, columns = across * 2, columns // 2
    return down, across


def _grouped(product: Product, num_warps: int) -> tuple[int, int]:
    """Warp groups down the rows while there are rows, then across."""
    down, across = 4, 1
    while down * across < num_warps:
        if product.rows > 16 * down:
            down *= 2
        else:
            across *= 2
    return down, across


def _tie_accumulators(lowering: _Lowering) -> None:
    """What a loop carries starts in the layout of the product that adds to it."""
    adding = {product.node.into: product for product in lowering.products if product.node.into}
    for value in lowering.values:
        if value.home is Home.PRODUCT and value.product is None:
            sources = [source.product for source in value.inputs if source.home is Home.PRODUCT]
            value.product = next((product for product in sources if product), None)
            value.product = value.product or adding.get(value.node.buffer)
            if value.node.region == SETUP:
                value.product = adding.get(value.node.buffer)
