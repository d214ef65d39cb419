"""The features of one token at a time, for the recurrent pass: channels mapped, or monomials."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import Features
from attnc.codegen.graph import SETUP, GraphBuilder, Node
from attnc.codegen.kernels.monomials import column_text
from attnc.dsl.variant import Variant


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What the parts of the kernel are built from; with `row_sums`, normalisers are kept."""

    variant: Variant
    algebra: Algebra
    features: Features
    dims: tuple[int, int]
    printer: Printer
    row_sums: bool

    @property
    def summed(self) -> bool:
        """Whether a normaliser goes with the state."""
        return self.algebra.normalize == "sum"

    @property
    def tokens(self) -> str:
        """How many tokens of a head lie apart in a workspace: those of all packed sequences."""
        return "NK" if self.algebra.mask.packed else "T"

    def guard(self, n: int) -> str:
        """The guard of a tile's rows that are no features."""
        tile = self.features.tiles[n]
        return f"r_f{n} < F" if tile.count < tile.width else ""


def feature_tables(builder: GraphBuilder, facts: TokenFacts) -> None:
    """Before the first token: which rows a tile holds and, of monomials, what each is made of."""
    for n, tile in enumerate(facts.features.tiles):
        rows, width = f"r_f{n}", str(tile.width)
        line = f"{rows} = {column_text(tile.start, tile.width)}"
        last = tile.start + tile.count - 1
        note = f"features {tile.start} to {last}"
        builder.map(rows, SETUP, (width,), line, dtype="i32", note=note)
        if facts.features.direct:
            continue
        for r in range(tile.order):
            place = {0: "", 1: "FP + "}.get(r, f"{r} * FP + ")
            builder.load(
                f"b_i{n}{r}", SETUP, (width,), dtype="i32", tensor="index",
                address=f"index + {place}{rows}", reads=(rows,),
            )  # fmt: skip
        builder.load(
            f"b_w{n}", SETUP, (width,), tensor="weight", address=f"weight + {rows}", reads=(rows,),
            note="c_m * scale**m * m!/alpha!, zero in padding",
        )  # fmt: skip


def token_features(
    facts: TokenFacts, tensor: str, target: str, region: str, pointer: str = ""
) -> list[Node]:
    """`target`0, `target`1, ... = the features of the token at `pointer`, or at `p_qt`, `p_kt`."""
    pointer, stride = pointer or f"p_{tensor}t", f"stride_{tensor}_k"
    features = facts.features
    if features.direct:
        return _channels(facts, tensor, target, region, pointer)
    weighted = tensor == "q"
    nodes = []
    for n, tile in enumerate(features.tiles):
        lines, factors = [], []
        for r in range(tile.order):
            factors.append(f"b_x{r}")
            load = f"tl.load({pointer} + b_i{n}{r} * {stride}, mask=b_i{n}{r} >= 0, other=1.0)"
            if len(load) > 80:
                load = load.replace(", mask=", ",\n    mask=").replace("tl.load(", "tl.load(\n    ")
            lines.append(f"b_x{r} = {load}.to(ACC)")
        if weighted:
            factors.append(f"b_w{n}")
        product = " * ".join(factors) or f"tl.full([{tile.width}], 1.0, ACC)"
        lines.append(f"{target}{n} = {product}")
        reads = (pointer, *(f"b_i{n}{r}" for r in range(tile.order)), *((f"b_w{n}",) * weighted))
        nodes.append(
            Node(
                f"features {target}{n}",
                "load",
                f"{target}{n}",
                region,
                (str(tile.width),),
                "acc",
                reads=reads,
                tensor=tensor,
                lines=tuple(lines),
            )
        )
    return nodes


def _channels(facts: TokenFacts, tensor: str, target: str, region: str, pointer: str) -> list[Node]:
    """phi of one token's channels, zero in padding: phi(0) need not be 0."""
    shape, buffer = (str(facts.features.tiles[0].width),), f"{target}0"
    guard = facts.guard(0).replace("F", "K")
    load = Node(
        f"load {buffer}", "load", buffer, region, shape, "acc", reads=(pointer, "r_f0"),
        tensor=tensor, address=f"{pointer} + r_f0 * stride_{tensor}_k", guard=guard,
    )  # fmt: skip
    phi = facts.algebra.phi
    if phi is None:
        return [load]
    channel = f"{buffer}x"
    bound = facts.printer.bound({"x": channel})
    lines = [f"{channel} = {buffer}", *bound.tile(buffer, phi, "x")]
    if guard:
        lines.append(f"{buffer} = tl.where({guard}, {buffer}, 0.0)")
    mapped = Node(
        f"phi {buffer}", "map", buffer, region, shape, "acc", reads=(buffer,), lines=tuple(lines)
    )
    return [load, mapped]
