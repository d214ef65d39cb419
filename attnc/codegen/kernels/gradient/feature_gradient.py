"""Gradients of q and k through features: of monomials, and of the maps, whose sums join at last."""

from __future__ import annotations

from attnc.codegen.graph import STEP, GraphBuilder, Operand
from attnc.codegen.kernels.chunk import ChunkFacts
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.terms import Part


def gradient_buffers(parts: tuple[Part, ...], plain: str) -> tuple[str, ...]:
    """`b_dq` or `b_dk`, then the sums of what comes back through each feature map."""
    names = (part.query.replace("b_q", plain) for part in parts)
    return tuple(dict.fromkeys((plain, *names)))


def chain(
    builder: GraphBuilder,
    facts: GradientFacts,
    region: str,
    shape: tuple[str, str],
    gradient: str,
    raw: str,
    *,
    into: str = "",
) -> None:
    """Through the feature map, times phi'(x) at the raw channels, and into the sum of all terms."""
    slope = facts.derivation.phi_slope
    assert slope is not None
    bound = facts.printer.bound({"x": f"{raw}c"})
    lines = (f"{raw}c = {raw}.to(ACC)", *bound.statements(f"{raw}s", slope))
    builder.map(
        gradient, region, shape, *lines, f"{gradient} = {gradient} * {raw}s",
        name=f"phi' {gradient}", reads=(gradient, raw), note="through phi",
    )  # fmt: skip
    if into not in {"", gradient}:
        line = f"{into} = {into} + {gradient}"
        builder.map(into, region, shape, line, name=f"join {gradient}", reads=(into, gradient))


def through_features(
    builder: GraphBuilder,
    chunk: ChunkFacts,
    n: int,
    target: str,
    *,
    weighted: bool,
    carried: bool = False,
) -> None:
    """Add b_df, the gradient of one tile of features, to that of the channels.

    `carried` says that the latter is carried over the heads of a group.
    """
    if chunk.features.direct:
        line = f"{target} = {target} + b_df"
        add = builder.fold if carried else builder.map
        add(target, STEP, ("BC", "BK"), line, name=f"add {target}", reads=(target, "b_df"))
        return
    tile = chunk.features.tiles[n]
    width = str(tile.width)
    for r in range(tile.order):
        others = [f"b_x{other}" for other in range(tile.order) if other != r]
        others += [f"b_w{n}[None, :]"] if weighted else []
        line = " * ".join(["b_dx = b_df", *others])
        name = f"factor {r} of {target}{n}"
        note = "each factor gets the product of the others" if r == 0 else ""
        reads = ("b_df", *(f"b_x{other}" for other in range(tile.order)), f"b_w{n}", f"b_e{n}")
        builder.map(
            "b_dx", STEP, ("BC", width), line, dtype="io", name=name, reads=reads, note=note
        )
        left = Operand("b_dx", "b_dx", ("BC", width))
        right = Operand(f"b_e{n}", f"tl.trans(b_e{n}{r})", (width, "BK"), transposed=True)
        builder.dot(
            target, STEP, ("BC", "BK"), left, right, name=f"through {target}{n}{r}", into=target,
            carried=carried, note=f"[BC, {width}] @ [{width}, BK]",
        )  # fmt: skip
