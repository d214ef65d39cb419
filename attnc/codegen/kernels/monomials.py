"""Feature tiles as nodes: channels of phi(x), or monomials picked on the tensor cores.

A monomial of order m is the product of m columns of x. Each column is picked by a product with a
0/1 matrix, which is exact, so a feature costs dots and no gather.
"""

from __future__ import annotations

from attnc.codegen.features import Features
from attnc.codegen.graph import SETUP, STEP, Node, Operand


def column_text(start: int, width: int) -> str:
    """The column numbers of a tile."""
    return f"{start} + tl.arange(0, {width})" if start else f"tl.arange(0, {width})"


def _row_text(row: int) -> str:
    return {0: "", 1: "FP + "}.get(row, f"{row} * FP + ")


def selection_nodes(
    features: Features, *, weights: bool, only: int | None = None, region: str = SETUP
) -> tuple[Node, ...]:
    """The 0/1 matrices of every tile, or of one alone, and the query side's weights.

    They stand before the loop, unless a program has no registers to keep them in: loads in the
    loop stay there.
    """
    if features.direct:
        return ()
    nodes: list[Node] = []
    for n, tile in enumerate(features.tiles):
        if only not in {None, n}:
            continue
        width = str(tile.width)
        columns = f"o_f{n}"
        lines = [f"{columns} = {column_text(tile.start, tile.width)}"]
        for r in range(tile.order):
            lines.append(f"b_i{n}{r} = tl.load(p_index + {_row_text(r)}{columns})")
            lines.append(f"b_e{n}{r} = (o_k[:, None] == b_i{n}{r}[None, :]).to(IO)")
            if tile.padded and r > 0:
                lines.append(f"b_u{n}{r} = tl.where(b_i{n}{r} < 0, 1.0, 0.0)")
        if tile.padded and tile.order > 0:
            lines.append(f"b_u{n}0 = tl.where(b_i{n}0 < 0, 1.0, 0.0)")
        note = f"columns {tile.start} to {tile.start + tile.count - 1}: which factors each takes"
        nodes.append(
            Node(
                f"selection {n}",
                "load",
                f"b_e{n}",
                region,
                ("BK", width),
                "io",
                note=note,
                tensor="index",
                lines=tuple(lines),
            )
        )
        if weights:
            nodes.append(
                Node(
                    f"load b_w{n}",
                    "load",
                    f"b_w{n}",
                    region,
                    (width,),
                    "acc",
                    note="c_m * scale**m * m!/alpha!, zero in padding",
                    tensor="weight",
                    address=f"p_weight + {columns}",
                )
            )
    return tuple(nodes)


def feature_nodes(
    features: Features, source: str, target: str, *, rows: str = "BC", weighted: bool = False
) -> tuple[Node, ...]:
    """In the loop: `target`0, `target`1, ... = the features of the rows of `source`."""
    if features.direct:
        return ()
    return tuple(
        node
        for n in range(len(features.tiles))
        for node in tile_nodes(features, n, source, target, rows=rows, weighted=weighted)
    )


def tile_nodes(
    features: Features,
    n: int,
    source: str,
    target: str,
    *,
    rows: str,
    weighted: bool,
    region: str = STEP,
) -> tuple[Node, ...]:
    """`target`n = one tile of features of the rows of `source`; b_x0, b_x1, ... are its factors."""
    tile = features.tiles[n]
    width, buffer = str(tile.width), f"{target}{n}"
    nodes: list[Node] = []
    for r in range(tile.order):
        padded = f" + b_u{n}{r}[None, :]" if tile.padded else ""
        # [BC, BK] @ [BK, BF], exact: one factor a column
        nodes.append(
            Node(
                f"pick {buffer} {r}",
                "dot",
                f"b_x{r}",
                region,
                (rows, width),
                left=Operand(source, source, (rows, "BK")),
                right=Operand(f"b_e{n}", f"b_e{n}{r}", ("BK", width)),
                note=f"factor {r} of features {tile.start}: [{rows}, BK] @ [BK, {width}]",
                lines=(padded,),
            )
        )
    factors = [f"b_x{r}" for r in range(tile.order)]
    if weighted:
        factors.append(f"b_w{n}[None, :]")
    product = " * ".join(factors) if factors else "1.0"
    if not tile.order:
        product = f"tl.zeros([{rows}, {width}], ACC) + " + product
    reads = (*(f"b_x{r}" for r in range(tile.order)), *((f"b_w{n}",) if weighted else ()))
    nodes.append(
        Node(
            f"features {buffer}",
            "map",
            buffer,
            region,
            (rows, width),
            "io",
            reads=reads,
            lines=(f"{buffer} = {product}",),
        )
    )
    return tuple(nodes)
