"""Loads of q, k and v, and what the feature map makes of them."""

from __future__ import annotations

from dataclasses import replace

import sympy

from attnc.codegen.expression.printer import Printer
from attnc.codegen.expression.symbolic import symbol
from attnc.codegen.graph import Node


def load_tile(
    buffer: str,
    pointer: str,
    stride: tuple[str, str],
    index: tuple[str, str],
    shape: tuple[str, str],
    region: str,
    *,
    guard: str = "",
    edge_guard: str = "",
    start: str = "",
) -> Node:
    """A `[rows, columns]` tile; `stride` and `index` are (row, column) texts.

    `start` is the first row of the tile where the pointer does not stand there already; it is
    multiplied in 64 bits, since a row times its stride passes 2**31.
    """
    rows, columns = index
    tensor = pointer.removeprefix("p_")
    lines: tuple[str, ...] = ()
    if start:
        base = f"{pointer}t"
        lines = (f"{base} = {pointer} + tl.cast({start}, tl.int64) * {stride[0]}",)
        pointer = base
    row_stride, column_stride = stride
    place = f"{rows}[:, None] * {row_stride} + {columns}[None, :] * {column_stride}"
    return Node(
        name=f"load {buffer}",
        op="load",
        buffer=buffer,
        region=region,
        shape=shape,
        dtype="io",
        lines=lines,
        note=f"[{', '.join(shape)}]",
        address=f"{pointer} + {place}",
        guard=guard,
        edge_guard=edge_guard,
        tensor=tensor,
    )


def map_features(
    buffer: str,
    phi: sympy.Expr | None,
    shape: tuple[str, str],
    region: str,
    printer: Printer,
    *,
    guard: str,
    edge_guard: str = "",
    source: str = "",
) -> tuple[Node, ...]:
    """phi of a loaded tile, in the accumulator's precision; padding is zero after phi.

    The tile is `source`, `buffer` itself where that is not given. phi(0) need not be 0: elu(0) + 1
    is 1, and a padded column of ones would count. Padded rows, of which `edge_guard` tells, meet
    zeros in a product: they are zeroed where phi(0) is no number, as 1/0 and log(0) are none.
    """
    if phi is None:
        return ()
    # a name for each tensor: Triton keeps a name's shape through a loop
    channel = f"{buffer}x"
    bound = printer.bound({"x": channel})
    source = source or buffer
    lines = [f"{channel} = {source}.to(ACC)", *bound.tile(buffer, phi, "x")]
    if guard:
        lines.append(f"{buffer} = tl.where({guard}, {buffer}, 0.0)")
    node = Node(
        name=f"phi {buffer}",
        op="map",
        buffer=buffer,
        region=region,
        shape=shape,
        dtype="io",
        reads=(source,),
        note="phi, in the accumulator's precision",
        lines=tuple(lines),
    )
    if not edge_guard or phi.subs(symbol("x"), 0).is_finite:
        return (node,)
    rows = replace(
        node, name=f"phi {buffer} of padding", reads=(buffer,), masked_only=True,
        note="phi(0) is no number", lines=(f"{buffer} = tl.where({edge_guard}, {buffer}, 0.0)",),
    )  # fmt: skip
    return (node, rows)


def ragged_columns(mask: str, dim: int, narrowest: int = 16) -> str:
    """The guard of a head dim's padded columns; none where the dim is a tile already."""
    return "" if dim >= narrowest and dim & (dim - 1) == 0 else f"{mask}[None, :]"


def join_guards(*guards: str) -> str:
    """The guards that are there, all of which must hold."""
    return " & ".join(guard for guard in guards if guard)
