"""The weights that a kernel over pairs folds: the terms of a sum, or the one weight of a variant.

All terms fold into one (maximum, sum, accumulator). The maximum is the log2 of the largest weight
of any term that a row has seen: of exp(s) it is s itself, of a polynomial w the log2 of w. Weights
enter divided by it, as exp2(s - m) and as w * exp2(-m), so none is over 1 and one is 1: the sum
neither overflows, for scores of any size, nor vanishes, for a polynomial that is small or exp(s)
that is. m clamped at 0 would lose the latter: a row that has seen a window alone, its scores all
below -100, would give 0. w itself has to be finite in fp32, |s| < 1e38 ** (1 / degree), as in the
state family, and exp2(-m) is: below m = -126 it stays at exp2(126), and what w is there is less
than fp32's smallest number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log2

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer, number
from attnc.codegen.expression.symbolic import ref_symbol
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.online import fold_weights, new_maximum, online_step
from attnc.codegen.kernels.operand import map_features
from attnc.codegen.kernels.visible import bound_arguments, visible_lines
from attnc.codegen.kernels.weight import horner
from attnc.codegen.tile_range import KeyRange
from attnc.dsl.expr import Ref
from attnc.dsl.sign import may_round_below_zero
from attnc.dsl.variant import Declared, Variant


@dataclass(frozen=True, slots=True)
class Part:
    """One weight of a variant: term `number` of a sum from 0, or the only one, `of_sum` false."""

    number: int
    variant: Variant
    algebra: Algebra
    of_sum: bool

    @property
    def query(self) -> str:
        """The buffer of the query's features; terms without a map share q itself."""
        return f"b_q{self.number + 1}" if self.of_sum and self.algebra.phi is not None else "b_q"

    @property
    def key(self) -> str:
        """The buffer of the key's features, where a program holds its keys."""
        return self.query.replace("b_q", "b_k")

    @property
    def factor(self) -> str:
        """The text of the factor, empty for 1."""
        factor = self.algebra.factor
        if factor is None:
            return ""
        return number(float(factor)) if factor.is_number else f"b_f{self.number + 1}"

    @property
    def note(self) -> str:
        """What its loops fold, for a comment above them."""
        return f"term {self.number + 1}: {self.algebra.weight}"


def parts_of(variant: Variant, algebra: Algebra) -> tuple[Part, ...]:
    """The terms of a sum, or the variant as its only part."""
    if not algebra.terms:
        return (Part(0, variant, algebra, False),)
    pairs = zip(variant.terms, algebra.terms, strict=True)
    return tuple(Part(number, *pair, True) for number, pair in enumerate(pairs))


def load_terms(
    algebra: Algebra,
    declared: tuple[Declared, ...],
    axes: Mapping[str, Axis],
    *,
    sink: bool,
    factors: bool = True,
) -> Loaded:
    """Loads of what all terms read and, with `sink`, of what the sink reads too."""
    found: list[Ref] = []
    names: frozenset[str] = frozenset()
    for term in algebra.terms:
        expressions = [(term.score, term.score_refs)]
        expressions += [(term.factor, term.factor_refs)] if factors else []
        for expression, refs in expressions:
            found += refs
            names |= frozenset() if expression is None else scalar_names(expression, declared)
    if sink and algebra.sink is not None:
        found += algebra.sink_refs
        names |= scalar_names(algebra.sink, declared)
    alike = {(ref.name, ref.index): ref for ref in reversed(found)}
    ordered = tuple(alike[place] for place in dict.fromkeys((r.name, r.index) for r in found))
    return load_refs(ordered, declared, axes, two_lanes=True, names=names)


def loads_of(part: Part, loaded: Loaded) -> Loaded:
    """Of all loads, those before the loops and those that the part's score reads inside one."""
    if not part.of_sum:
        return loaded
    texts = [loaded.bindings[ref_symbol(ref).name] for ref in part.algebra.score_refs]
    read = {text.partition("[")[0] for text in texts}
    nodes = tuple(n for n in loaded.nodes if n.region != STEP or n.buffer in read)
    return Loaded(nodes, loaded.bindings, loaded.tensors)


def map_held(
    builder: GraphBuilder,
    parts: tuple[Part, ...],
    printer: Printer,
    *,
    of: str,
    guard: str,
    region: str = SETUP,
) -> None:
    """What the feature maps make of `b_q` or `b_k`, held by a program; in place for one weight."""
    shape = ("BT" if of == "b_q" else "BS", "BK")
    for part in parts:
        buffer = part.query if of == "b_q" else part.key
        source, phi = of if part.of_sum else "", part.algebra.phi
        builder.extend(
            map_features(buffer, phi, shape, region, printer, guard=guard, source=source)
        )


def factor_nodes(
    builder: GraphBuilder,
    parts: tuple[Part, ...],
    loaded: Loaded,
    printer: Printer,
    *,
    region: str = SETUP,
    logs: bool,
    heads: bool = False,
) -> None:
    """`b_f1` and so on, one number a query head; with `logs`, the log2 of an exponential's.

    With `heads` the rows of a program are query heads, and a factor may be a column of numbers.
    """
    for part in parts:
        factor, name = part.algebra.factor, part.factor
        if factor is None or factor.is_number:
            continue
        lines, index = index_bindings(factor)
        if heads and "h" in index:
            index["h"] = f"{index['h']}[:, None]"
        bound = printer.bound({**loaded.bindings, **index})
        lines += bound.statements(name, factor)
        note = f"the factor of term {part.number + 1}"
        if logs and part.algebra.family == "softmax":
            lines.append(f"{name} = tl.log2({name})")
            note += ", in log2"
        reads = ("p_q", *(node.buffer for node in loaded.nodes if node.region != STEP))
        builder.map(name, region, (), *lines, reads=reads, note=note)


def term_step(
    builder: GraphBuilder,
    part: Part,
    scale: float,
    loaded: Loaded,
    printer: Printer,
    scales: Loaded,
    *,
    heads: bool = False,
    rows: str = SETUP,
) -> str:
    """Fold one key tile of a term; the name of the tile of weights that meets v.

    With `heads` the rows are query heads of one token; `rows` is where their positions are known.
    """
    if part.algebra.family == "softmax":
        factor = part.algebra.factor
        shift = part.factor
        if factor is not None and factor.is_number:
            shift = number(log2(float(factor)))
        return online_step(
            builder, part.algebra, scale, loaded, printer,
            scales=scales, heads=heads, shift=shift, rows=rows,
        )  # fmt: skip
    tile = ("BT", "BS")
    lines = weight_lines("b_w", part, scale)
    note = "the weight, a polynomial of s"
    builder.map("b_w", STEP, tile, *lines, name="weight", reads=("b_s", part.factor), note=note)
    hidden = "b_w = tl.where(m_st, b_w, 0.0)"
    builder.map(
        "b_w", STEP, tile, *visible_lines(part.algebra, loaded.bindings), hidden,
        name="visible", reads=("b_w",), masked_only=True, note="what the mask hides weighs 0",
    )  # fmt: skip
    new_maximum(builder, "tl.log2(tl.max(b_w, 1))", "b_w")
    weights = f"b_p = b_w * {inverse('b_ms')}[:, None]"
    note = "over the largest weight so far, as exp2(s - maximum) is"
    builder.map("b_p", STEP, tile, weights, reads=("b_w", "b_ms"), note=note)
    fold_weights(builder)
    return "b_p"


def weight_lines(target: str, part: Part, scale: float, *, factored: bool = True) -> list[str]:
    """`target` = the polynomial of `b_s`, times its factor."""
    coefficients = part.algebra.coefficients
    lines = list(horner(target, "b_s", coefficients, scale, direct=False))
    if part.algebra.phi is None and may_round_below_zero(coefficients):
        lines.append(f"{target} = tl.maximum({target}, 0.0)")
    if factored and part.factor:
        lines.append(f"{target} = {target} * {part.factor}")
    return lines


def inverse(exponent: str, least: int = -126) -> str:
    """exp2(-exponent), finite for an exponent of any size: none is taken to be below `least`."""
    return f"tl.exp2(-tl.maximum({exponent}, {least}.0))"


def over_tiles(
    kernel: Kernel,
    parts: tuple[Part, ...],
    declared: tuple[Declared, ...],
    range_of: Callable[[Part], KeyRange],
) -> Kernel:
    """The kernel with the loops that `range_of` makes for its weight, or for each term."""
    ranges = [range_of(part) for part in parts]
    tensors = tuple(tensor for r in ranges for tensor in bound_arguments(r, declared))
    if not parts[0].of_sum:
        return kernel.over(ranges[0], tensors)
    return kernel.over_terms([(p.note, r) for p, r in zip(parts, ranges, strict=True)], tensors)
