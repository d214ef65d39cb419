"""What one step of a consumer does beside its two products, and in which order.

The product with a tile of values runs while the next tile's scores are exponentiated, so what
touches the accumulator waits until that product is done; what needs no scores comes before them.
Source: FlashAttention-3 (arXiv 2407.08608), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.graph import STEP, KernelGraph, Node


@dataclass(frozen=True, slots=True)
class Schedule:
    """Nodes of one step: `ahead` of the scores, of the `scores`, of the `accumulator`.

    `weights` is the tile that meets the values, `pairs` the one that the scores' product makes,
    `into` what the values are summed into.
    """

    ahead: tuple[Node, ...]
    scores: tuple[Node, ...]
    accumulator: tuple[Node, ...]
    weights: str
    pairs: str
    into: str


def schedule(graph: KernelGraph, *, masked: bool) -> Schedule:
    """Split the step of a kernel with two products, scores and values."""
    nodes = tuple(graph.nodes(STEP, masked=masked))
    first, second = (node for node in nodes if node.op == "dot")
    assert first.left is not None and first.right is not None
    assert second.left is not None and second.right is not None
    copied = {first.left.buffer, first.right.buffer, second.right.buffer}
    tainted = {first.buffer}
    ahead: list[Node] = []
    scores: list[Node] = []
    accumulator: list[Node] = []
    for node in nodes:
        if node.op == "dot" or (node.op == "load" and node.buffer in copied):
            continue
        if node.buffer == second.into:
            accumulator.append(node)
        elif node.buffer in tainted or tainted & set(node.reads):
            tainted.add(node.buffer)
            scores.append(node)
        else:
            ahead.append(node)
    return Schedule(
        tuple(ahead), tuple(scores), tuple(accumulator),
        second.left.buffer, first.buffer, second.into,
    )  # fmt: skip
