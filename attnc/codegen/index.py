"""How the tensors of an expression (`slope[h]`, `g[b,t,h]`, `x[b,i,h]`) are loaded in a kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sympy

from attnc.codegen.expression.symbolic import ref_symbol
from attnc.codegen.graph import HEAD, REGIONS, SETUP, Node
from attnc.codegen.kernel import TensorArgument
from attnc.dsl.expr import Ref
from attnc.dsl.variant import Declared

_TOKENS = frozenset("tij")
_WIDENED = ".to(tl.int64)"


@dataclass(frozen=True, slots=True)
class Axis:
    """What an index letter is in one kernel: its text, whether it is a row or a column vector.

    `wide` says that it counts in 64 bits already.
    """

    text: str
    lane: str  # "" for a scalar, "row", "column"
    guard: str = ""
    edge_guard: str = ""
    tile: str = ""
    region: str = SETUP
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """The loads an expression needs and the text each of its symbols stands for."""

    nodes: tuple[Node, ...]
    bindings: Mapping[str, str]
    tensors: tuple[TensorArgument, ...]


def load_refs(
    refs: tuple[Ref, ...],
    declared: tuple[Declared, ...],
    axes: Mapping[str, Axis],
    *,
    two_lanes: bool,
    names: frozenset[str] = frozenset(),
    stem: str = "b_u_",
) -> Loaded:
    """One load a reference; scalars and row vectors before the loop, columns inside it.

    `names` are the 0-d tensors that the expression uses by name alone; `stem` starts the names of
    the buffers.
    """
    by_name = {tensor.name: tensor for tensor in declared}
    nodes: list[Node] = []
    bindings: dict[str, str] = {}
    tensors: dict[str, TensorArgument] = {}
    wanted = [*refs, *(Ref(name, ()) for name in sorted(names))]
    for ref in wanted:
        tensor = by_name[ref.name]
        tensors.setdefault(ref.name, tensor_argument(tensor))
        several = sum(other.name == ref.name for other in wanted) > 1
        # u_ is for what the user declared: no other name of a kernel starts with it
        suffix = f"_{''.join(ref.index)}" if several else ""
        buffer = f"{stem}{name_with(suffix, ref.name, by_name)}"
        node, text = _load(ref, tensor, buffer, axes, two_lanes)
        nodes.append(node)
        bindings[ref_symbol(ref).name if ref.index else ref.name] = text
    return Loaded(tuple(nodes), bindings, tuple(tensors.values()))


def name_with(suffix: str, name: str, declared: Collection[str]) -> str:
    """A declared tensor's name with a suffix that no other of the `declared` names runs into.

    Where one goes on as the suffix may, `a_h` beside `a`, it is in capitals, which no name has.
    """
    longer = any(other.startswith(f"{name}_") for other in declared)
    return name + (suffix.upper() if longer else suffix)


def scalar_names(expression: sympy.Expr, declared: tuple[Declared, ...]) -> frozenset[str]:
    """The 0-d tensors that an expression uses by name."""
    names = {symbol.name for symbol in expression.free_symbols}
    return frozenset(
        tensor.name for tensor in declared if not tensor.shape and tensor.name in names
    )


def tensor_argument(tensor: Declared) -> TensorArgument:
    """The kernel argument of a declared param or input."""
    layout = f"[{', '.join(tensor.shape)}]" if tensor.shape else "scalar"
    return TensorArgument(f"u_{tensor.name}", tensor.shape, "tensor", layout, given=tensor.name)


def _load(
    ref: Ref, tensor: Declared, buffer: str, axes: Mapping[str, Axis], two_lanes: bool
) -> tuple[Node, str]:
    parts = [f"u_{ref.name}"]
    guards: list[str] = []
    edge_guards: list[str] = []
    region = SETUP
    lanes: dict[str, str] = {}
    for letter, declared_axis in zip(ref.index, tensor.shape, strict=True):
        # an axis of tokens is indexed by a position, one of query rows by the row itself
        key = "row" if (letter, declared_axis) == ("i", "i") else letter
        axis = axes[key]
        if axis.lane:
            lanes[axis.lane] = axis.tile
        region = max(region, axis.region, key=REGIONS.index)
        index = axis.text
        if declared_axis in _TOKENS and not axis.wide:
            # rows times keys pass 2**31 from T = 46,341 on, and tokens times the row of a wider
            # tensor that gates are a part of, beside q, k and v
            index += _WIDENED
        parts.append(f"{_spread(axis, index)} * stride_u_{ref.name}_{declared_axis}")
        if axis.guard:
            guards.append(_spread(axis, axis.guard))
        if axis.edge_guard:
            edge_guards.append(_spread(axis, axis.edge_guard))
    both = len(lanes) == 2
    guard = " & ".join(dict.fromkeys(guards))
    edge_guard = " & ".join(dict.fromkeys(edge_guards))
    if not both:
        # one lane alone stays a vector: the extra axis is written where it is used
        parts = [_flat(part) for part in parts]
        guard, edge_guard = _flat(guard), _flat(edge_guard)
    pointer = f"p_{buffer.removeprefix('b_')}"
    # without a guard a load stands on one line, deep in a loop over tokens
    width = 76 if guard or edge_guard or region != HEAD else 56 - len(buffer)
    lines, address = pointer_lines(pointer, parts, width)
    shape = tuple(lanes[lane] for lane in ("row", "column") if lane in lanes)
    node = Node(
        name=f"load {buffer}",
        op="load",
        buffer=buffer,
        region=region,
        shape=shape,
        dtype="acc",
        lines=lines,
        address=address,
        guard=guard,
        edge_guard=edge_guard,
        tensor=f"u_{ref.name}",
    )
    if not two_lanes or both or not lanes:
        return node, buffer
    return node, f"{buffer}[:, None]" if "row" in lanes else f"{buffer}[None, :]"


def pointer_lines(pointer: str, parts: list[str], width: int = 76) -> tuple[tuple[str, ...], str]:
    """The sum of `parts` as an address that fits a line, and the statements it needs before."""
    whole = " + ".join(parts)
    if len(whole) <= width:
        return (), whole
    lines: list[str] = []
    text = parts[0]
    for part in parts[1:]:
        if len(text) + len(part) + 3 > width:
            lines.append(f"{pointer} = {text}")
            text = pointer
        text = f"{text} + {part}"
    return tuple(lines), text


def _flat(text: str) -> str:
    return text.replace("[:, None]", "").replace("[None, :]", "")


def _spread(axis: Axis, text: str) -> str:
    if axis.lane == "row":
        return _index(text, "[:, None]")
    if axis.lane == "column":
        return _index(text, "[None, :]")
    return text


def _index(text: str, mark: str) -> str:
    alone = text.removesuffix(_WIDENED).isidentifier()
    return f"{text}{mark}" if alone else f"({text}){mark}"
