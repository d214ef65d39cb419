"""A node of the graph as the statement that templates print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attnc.codegen.graph import Node
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import Plan


@dataclass(frozen=True, slots=True)
class Statement:
    """A node as text, for one region and one kind of loop."""

    op: str
    buffer: str
    note: str
    lines: tuple[str, ...]
    address: str
    guard: str
    suffix: str
    value: str
    left: str
    right: str
    into: str
    cast_to: str

    def texts(self) -> Iterator[str]:
        """All of its text, for whoever asks which names it uses."""
        yield from (*self.lines, self.address, self.guard, self.value, self.left, self.right)
        yield from (self.suffix, self.into)


def statements(
    plan: Plan, kernel: Kernel, region: str, *, masked: bool, walk: int | None = None
) -> Iterable[Statement]:
    """The nodes of a region in order, those of masked loops where `masked`."""
    for node in kernel.graph.nodes(region, masked=masked, walk=walk):
        yield statement(plan, kernel, node, masked=masked)


def statement(plan: Plan, kernel: Kernel, node: Node, *, masked: bool) -> Statement:
    """One node; the guard of a ragged edge stands where `masked`."""
    guards = [node.guard, node.edge_guard if masked else ""]
    suffix, cast_to, value = "", "", ""
    lines = node.lines
    if node.op == "load":
        suffix = _load_cast(plan, kernel, node)
    elif node.op == "store":
        value, lines = node.lines[-1], node.lines[:-1]
    elif node.op == "dot":
        suffix, lines = "".join(node.lines), ()
        cast_to = "IO" if node.dtype == "io" else ""
    elif node.dtype == "io":
        cast_to = "IO"
    return Statement(
        op=node.op,
        buffer=node.buffer,
        note=node.note,
        lines=lines,
        address=node.address,
        guard=" & ".join(dict.fromkeys(guard for guard in guards if guard)),
        suffix=suffix,
        value=value,
        left=node.left.text if node.left else "",
        right=node.right.text if node.right else "",
        into=node.into,
        cast_to=cast_to,
    )


def _load_cast(plan: Plan, kernel: Kernel, node: Node) -> str:
    """What a load appends when the tensor's type is not the one the node asks for."""
    tensor = kernel.tensor(node.tensor)
    if node.dtype != "acc" or tensor is None:
        return ""
    same = tensor.dtype == "acc" or (tensor.dtype == "fp32" and plan.acc == "fp32")
    return "" if same else ".to(ACC)"
