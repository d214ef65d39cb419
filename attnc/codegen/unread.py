"""What no statement of a kernel reads: lines and tiles that go before it is planned or printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from attnc.codegen.graph import Node

_GIVES = re.compile(r"(\w+) = ")


def drop_unread(flow: nx.DiGraph) -> None:
    """Take out of a graph the lines and tiles whose names stand in no other text of it.

    What a loop carries stays, and so does what is stored.
    """
    while True:
        nodes: dict[str, Node] = nx.get_node_attributes(flow, "node")
        read = Counter(word for node in nodes.values() for text in _texts(node) for word in text)
        left = {name: _without_unread(node, read) for name, node in nodes.items()}
        if left == nodes:
            return
        for name, node in left.items():
            if node is None:
                flow.remove_node(name)
            else:
                flow.nodes[name]["node"] = node


def _without_unread(node: Node, read: Counter[str]) -> Node | None:
    """The node without its unread lines, or nothing where all that it makes is read by itself."""
    if node.op == "store":
        return node
    own = Counter(word for text in _texts(node) for word in text)
    carried = node.op == "fold" or node.carried or bool(node.into)
    if not carried and all(read[name] == own[name] for name in _made(node)):
        return None
    kept = {node.buffer} if carried else set()
    return replace(node, lines=tuple(line for line in node.lines if not _unread(line, read, kept)))


def _made(node: Node) -> set[str]:
    given = re.findall(r"^(\w+(?:, \w+)*) =", "\n".join(node.lines), re.MULTILINE)
    return {node.buffer, *(name for names in given for name in names.split(", "))}


def _unread(line: str, read: Counter[str], kept: set[str]) -> bool:
    gives = _GIVES.match(line)
    # a statement over several lines opens more brackets on its first than it closes there
    whole = all(line.count(a) == line.count(b) for a, b in ("()", "[]"))
    return gives is not None and whole and read[gives[1]] == 1 and gives[1] not in kept


def _texts(node: Node) -> Iterator[set[str]]:
    """The words of each line, and of each other text, of a node."""
    operands = [operand.text for operand in (node.left, node.right) if operand is not None]
    others = (node.address, node.guard, node.edge_guard, node.into, *operands)
    for text in (*node.lines, *others):
        yield set(re.findall(r"\w+", text))
