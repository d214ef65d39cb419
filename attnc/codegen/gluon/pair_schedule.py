"""What one step of a backward's consumer does, and in which order: two products, then the folds.

Scores and do . v are asked for together. The weights are made while do . v is under way, and what
they alone fold (dv) is asked for before the gradients of the scores are made.
Source: FlashAttention-3 (arXiv 2407.08608), section 3.2, for the passes of FlashAttention-2's
backward (arXiv 2307.08691), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from attnc.codegen.graph import STEP, KernelGraph, Node, Operand

# what the forward and the dq pass kept of every row
_KEPT = {"lse", "delta"}


@dataclass(frozen=True, slots=True)
class Product:
    """A product of tiles: its `name`, the tile on its left and the streamed one on its right."""

    name: str
    left: Operand
    right: Operand


@dataclass(frozen=True, slots=True)
class PairSchedule:
    """Nodes of one step, and its products.

    `statistics` are of the rows that a tile brings, made by the producer for all groups; `loads`
    may start before a tile has come, `ahead` needs no product, `scores` needs the first and
    `gradients` the second. `early` folds take what `scores` made, `late` ones what `gradients` did.
    `added` is the product that a fused pass adds to dq's sum, of a tile of pairs that lies across.
    """

    scores_of: Product
    gradients_of: Product
    statistics: tuple[Node, ...]
    loads: tuple[Node, ...]
    ahead: tuple[Node, ...]
    scores: tuple[Node, ...]
    gradients: tuple[Node, ...]
    early: tuple[Product, ...]
    late: tuple[Product, ...]
    added: Product | None = None

    @property
    def totals(self) -> tuple[str, ...]:
        """The accumulators, in the order in which they are folded."""
        return tuple(fold.name for fold in (*self.early, *self.late))

    def brought(self, before: Collection[Node]) -> tuple[str, ...]:
        """The statistics that some nodes read."""
        made = dict.fromkeys(node.buffer for node in self.statistics)
        read = {name for node in before for name in node.reads}
        return tuple(name for name in made if name in read)


def pair_schedule(graph: KernelGraph, *, masked: bool) -> PairSchedule:
    """Split the step of a `dq`, `dkv` or `dqkv` kernel."""
    nodes = tuple(graph.nodes(STEP, masked=masked))
    dots = [node for node in nodes if node.op == "dot"]
    first, second, *rest = (_product(node) for node in dots if not node.into)
    added = rest[0] if rest else None
    # what adds the product goes through the copy engine
    nodes = tuple(node for node in nodes if node.op != "store" or added is None)
    folds = [_product(node) for node in dots if node.into]
    copied = {first.right.buffer, second.right.buffer}
    of_scores, of_gradients = {first.name}, {second.name}
    statistics: list[Node] = []
    loads: list[Node] = []
    ahead: list[Node] = []
    scores: list[Node] = []
    gradients: list[Node] = []
    for node in nodes:
        reads = {node.buffer, *node.reads}
        brought = {other.buffer for other in statistics}
        if node.op == "dot" or (node.op == "load" and node.buffer in copied):
            continue
        if node.tensor in _KEPT or (node.buffer in brought and set(node.reads) <= brought):
            statistics.append(node)
        elif reads & of_gradients:
            of_gradients.add(node.buffer)
            gradients.append(node)
        elif reads & of_scores:
            of_scores.add(node.buffer)
            scores.append(node)
        elif node.op == "load" and not set(node.reads) & {other.buffer for other in ahead}:
            loads.append(node)
        else:
            ahead.append(node)
    late = [fold for fold in folds if fold.left.buffer in of_gradients]
    early = [fold for fold in folds if fold not in late]
    return PairSchedule(
        first, second, tuple(statistics), tuple(loads), tuple(ahead), tuple(scores),
        tuple(gradients), tuple(early), tuple(late), added,
    )  # fmt: skip


def _product(node: Node) -> Product:
    assert node.left is not None and node.right is not None
    return Product(node.into or node.buffer, node.left, node.right)
