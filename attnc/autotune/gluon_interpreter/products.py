"""wgmma: products that are asked for, go on by themselves, and are waited for in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnc.autotune.gluon_interpreter.agents import Agent, current
from attnc.autotune.gluon_interpreter.elements import Array
from attnc.autotune.gluon_interpreter.faults import GluonFault, kernel_line
from attnc.autotune.gluon_interpreter.shared import Access, Shared
from attnc.autotune.gluon_interpreter.tiles import Tile


@dataclass(eq=False, slots=True)
class Product:
    """One that was asked for; it reads its operands when it ends, as late as it may."""

    line: int
    reads: list[Access]
    compute: Callable[[], Array]
    result: Array | None = None

    def end(self, agent: Agent) -> None:
        self.result = self.compute()
        for access in self.reads:
            access.time = agent.clock[agent.name]


def warpgroup_mma(
    a: Tile | Shared,
    b: Shared,
    acc: Tile,
    *,
    use_acc: Any = True,
    precision: object = None,
    max_num_imprecise_acc: object = None,
    is_async: bool = False,
) -> Tile:
    """a [M, K] times b [K, N], onto acc [M, N] where `use_acc`; read it after a wait alone."""
    if not isinstance(b, Shared):
        raise GluonFault("the right side of a warp group's product lies in shared memory")
    if a.shape[1] != b.shape[0] or acc.shape != (a.shape[0], b.shape[1]):
        shapes = f"{list(a.shape)} times {list(b.shape)} onto {list(acc.shape)}"
        raise GluonFault(f"a product of shapes that do not fit: {shapes}")
    if a.dtype is not b.dtype:
        raise GluonFault(f"a product of {a.dtype} with {b.dtype}")
    agent = current()
    reads = [x.read_later(agent, "a product") for x in (a, b) if isinstance(x, Shared)]
    base = acc.product if bool(use_acc) else None
    start = None if not bool(use_acc) or base is not None else acc.data
    # in registers it is read at once: later values of a name are other registers
    left = a if isinstance(a, Shared) else a.data

    def compute() -> Array:
        sides = left.data if isinstance(left, Shared) else left
        found = sides.astype(np.float32) @ b.data.astype(np.float32)
        before = base.result if base is not None else start
        return found if before is None else found + before

    product = Product(kernel_line(), reads, compute)
    agent.products.append(product)
    made = Tile(np.empty(acc.shape, dtype=np.float32), acc.dtype, product)
    return made if is_async else warpgroup_mma_wait(0, deps=(made,))


def warpgroup_mma_wait(num_outstanding: int = 0, deps: Any = None) -> Any:
    """End all but the last so many products of this warp group, and hand over what `deps` hold."""
    if deps is None:
        raise GluonFault("a wait for products names those that it hands over: deps=(...)")
    agent = current()
    while len(agent.products) > num_outstanding:
        agent.products.pop(0).end(agent)
    agent.program.pause()
    found = tuple(map(_handed, deps))
    return found[0] if len(found) == 1 else found


def _handed(tile: Tile) -> Tile:
    product = tile.product
    if product is None:
        return tile
    if product.result is None:
        raise GluonFault(
            f"the product of line {product.line} is still under way after the wait of line "
            f"{kernel_line()}"
        )
    return Tile(product.result, tile.dtype)
