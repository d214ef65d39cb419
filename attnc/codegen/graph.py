"""The dataflow of one kernel: tile operations as nodes, buffers as edges.

A `KernelGraph` is what the planner measures and the templates print: every statement of a kernel's
body is a node, its name is the buffer it makes, and an edge says who reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import networkx as nx

from attnc.codegen.unread import drop_unread

# a kernel may walk its tiles once a head of a group: HEAD stands before that walk, TAIL after
SETUP, HEAD, STEP, TAIL, FINISH = "setup", "head", "step", "tail", "finish"
REGIONS = (SETUP, HEAD, STEP, TAIL, FINISH)
OPS = ("load", "dot", "map", "reduce", "fold", "scan", "store")


@dataclass(frozen=True, slots=True)
class Operand:
    """One matrix of a dot: the buffer, its shape in tiles, and the text that hands it over."""

    buffer: str
    text: str
    shape: tuple[str, str]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One tile operation.

    `shape` is in tile letters (`("BT", "BS")`), `dtype` is `io` (the tensors' type), `acc` (the
    accumulator's), or a fixed type. `masked_only` nodes appear in loops with mask code alone;
    `edge_guard` guards a load there alone. `walk` numbers the loops of a step, for kernels that
    walk their tiles more than once.
    """

    name: str
    op: str
    buffer: str
    region: str
    shape: tuple[str, ...] = ()
    dtype: str = "acc"
    reads: tuple[str, ...] = ()
    note: str = ""
    lines: tuple[str, ...] = ()
    address: str = ""
    guard: str = ""
    edge_guard: str = ""
    tensor: str = ""
    left: Operand | None = None
    right: Operand | None = None
    into: str = ""
    masked_only: bool = False
    carried: bool = False
    walk: int = 0


@dataclass(frozen=True, slots=True)
class KernelGraph:
    """The frozen dataflow of one pass; `flow` is the networkx graph, nodes in program order."""

    kernel: str
    flow: nx.DiGraph = field(compare=False)
    loop: str = ""
    _sorted: tuple[Node, ...] = field(init=False, repr=False, compare=False)
    _walks: tuple[KernelGraph, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # made once: planning, measuring and printing ask for them hundreds of times
        facts = self.flow.nodes
        order = nx.lexicographical_topological_sort(self.flow, lambda name: facts[name]["order"])
        object.__setattr__(self, "_sorted", tuple(facts[name]["node"] for name in order))
        object.__setattr__(self, "_walks", tuple(self._each_walk()))

    def nodes(
        self, region: str | None = None, *, masked: bool = True, walk: int | None = None
    ) -> Iterator[Node]:
        """Nodes in dependence order, ties by program order; of all walks where `walk` is None."""
        for node in self._sorted:
            if region not in {None, node.region} or (node.masked_only and not masked):
                continue
            if walk is None or node.region != STEP or node.walk == walk:
                yield node

    @property
    def walks(self) -> tuple[KernelGraph, ...]:
        """The graph as each walk runs it, without the steps of the others."""
        return self._walks or (self,)

    def _each_walk(self) -> Iterator[KernelGraph]:
        steps = {node.name: node.walk for node in self.nodes(STEP)}
        numbers = sorted(set(steps.values()))
        if len(numbers) > 1:
            for number in numbers:
                yield replace(self, flow=nx.freeze(_without(self.flow, steps, number)))

    def node(self, name: str) -> Node:
        """The node of one statement."""
        found: Node = self.flow.nodes[name]["node"]
        return found

    def without(self, name: str) -> KernelGraph:
        """The same graph with one node deleted."""
        flow = nx.DiGraph(self.flow)
        flow.remove_node(name)
        return replace(self, flow=nx.freeze(flow))

    def retyped(self, name: str, dtype: str) -> KernelGraph:
        """The same graph with one node's buffer in another type."""
        flow = nx.DiGraph(self.flow)
        attributes = dict(flow.nodes[name])
        attributes["node"] = replace(attributes["node"], dtype=dtype)
        flow.add_node(name, **attributes)
        for _, reader, edge in flow.out_edges(name, data=True):
            flow.edges[name, reader].update({**edge, "dtype": dtype})
        return replace(self, flow=nx.freeze(flow))

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.flow.number_of_nodes()} operations"]
        for region in REGIONS:
            for node in self.nodes(region):
                shape = f"[{', '.join(node.shape)}] {node.dtype}" if node.shape else node.dtype
                readers = ", ".join(sorted(set(self.flow.successors(node.name)))) or "-"
                lines.append(f"  {region:<6} {node.op:<6} {node.name:<14} {shape:<22} -> {readers}")
        return "\n".join(lines)


def _without(flow: nx.DiGraph, steps: dict[str, int], walk: int) -> nx.DiGraph:
    kept = nx.DiGraph(flow)
    kept.remove_nodes_from([name for name, number in steps.items() if number != walk])
    return kept


class GraphBuilder:
    """Collects nodes in program order and ties each to the latest writer of what it reads.

    `walk` is the number of the walk that steps are added to.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.flow = nx.DiGraph()
        self.loop = ""
        self.walk = 0
        self._writer: dict[str, str] = {}

    def add(self, node: Node) -> Node:
        """Add a node; its reads become edges that carry shape, dtype and residency."""
        if node.op not in OPS or node.region not in REGIONS:
            raise AssertionError(f"unknown operation {node.op!r} or region {node.region!r}")
        if self.walk:
            if node.region != STEP and self._stands(node):
                return node
            walk = self.walk if node.region == STEP else 0
            node = replace(node, name=f"{node.name}, term {self.walk + 1}", walk=walk)
        if node.name in self.flow:
            raise AssertionError(f"two statements are called {node.name!r}")
        self.flow.add_node(node.name, node=node, order=self.flow.number_of_nodes())
        dot_operands = {op.buffer for op in (node.left, node.right) if op is not None}
        for buffer in (*node.reads, *sorted(dot_operands)):
            writer = self._writer.get(buffer)
            if writer is None:
                continue
            source: Node = self.flow.nodes[writer]["node"]
            residency = "sram" if buffer in dot_operands else "register"
            self.flow.add_edge(
                writer,
                node.name,
                buffer=buffer,
                shape=source.shape,
                dtype=source.dtype,
                residency=residency,
            )
        if node.buffer:
            # in place: what read the old value must stay before the new one
            self._order_after_readers(node)
            self._writer[node.buffer] = node.name
        return node

    def _stands(self, node: Node) -> bool:
        """Whether another walk has made the same statement once for all."""
        return any(
            (other.region, other.buffer, other.lines, other.address)
            == (node.region, node.buffer, node.lines, node.address)
            for other in nx.get_node_attributes(self.flow, "node").values()
        )

    def map(
        self, buffer: str, region: str, shape: tuple[str, ...], *lines: str, **facts: Any
    ) -> None:
        """An elementwise statement, or several, that make `buffer`."""
        self._add("map", buffer, region, shape, lines, facts)

    def reduce(
        self, buffer: str, region: str, shape: tuple[str, ...], *lines: str, **facts: Any
    ) -> None:
        """A reduction along one axis of a tile."""
        self._add("reduce", buffer, region, shape, lines, facts)

    def scan(
        self, buffer: str, region: str, shape: tuple[str, ...], *lines: str, **facts: Any
    ) -> None:
        """A running sum along one axis of a tile."""
        self._add("scan", buffer, region, shape, lines, facts)

    def fold(
        self, buffer: str, region: str, shape: tuple[str, ...], *lines: str, **facts: Any
    ) -> None:
        """What a loop carries: its start, or one more step of it."""
        self._add("fold", buffer, region, shape, lines, {"carried": True, **facts})

    def load(self, buffer: str, region: str, shape: tuple[str, ...], **facts: Any) -> None:
        """A load; `address`, `guard` and `tensor` say from where."""
        self._add("load", buffer, region, shape, (), facts)

    def store(self, region: str, shape: tuple[str, ...], *lines: str, **facts: Any) -> None:
        """A store of the value that the last of `lines` is."""
        self._add("store", "", region, shape, lines, facts)

    def dot(
        self,
        buffer: str,
        region: str,
        shape: tuple[str, ...],
        left: Operand,
        right: Operand,
        **facts: Any,
    ) -> None:
        """A matrix product, added to `into` where that is given."""
        into = facts.get("into")
        if into:
            facts = {"carried": False, "reads": (into,), **facts}
        self._add("dot", buffer, region, shape, (), {"left": left, "right": right, **facts})

    def _add(
        self,
        op: str,
        buffer: str,
        region: str,
        shape: tuple[str, ...],
        lines: tuple[str, ...],
        facts: dict[str, Any],
    ) -> None:
        verb = "start" if op == "fold" and region == SETUP else op
        name = facts.pop("name", f"{verb} {buffer or facts.get('tensor', '')}")
        lines = facts.pop("lines", lines)
        self.add(
            Node(name=name, op=op, buffer=buffer, region=region, shape=shape, lines=lines, **facts)
        )

    def _order_after_readers(self, node: Node) -> None:
        previous = self._writer.get(node.buffer)
        if previous is None:
            return
        for reader in list(self.flow.successors(previous)):
            if reader != node.name and not self.flow.has_edge(reader, node.name):
                self.flow.add_edge(reader, node.name, buffer=node.buffer, residency="order")

    def extend(self, nodes: Iterable[Node]) -> None:
        """Add several nodes in order."""
        for node in nodes:
            self.add(node)

    def build(self) -> KernelGraph:
        """Freeze what was collected, without what no other statement reads.

        An expression loads every tensor that it names, and a derivative of it may need fewer.
        """
        drop_unread(self.flow)
        return KernelGraph(self.kernel, nx.freeze(self.flow), self.loop)


def elements(shape: tuple[str, ...], tiles: dict[str, int]) -> int:
    """How many elements a buffer of tile letters holds."""
    return prod(tiles[letter] if letter in tiles else int(letter) for letter in shape)
