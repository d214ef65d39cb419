"""Gradients of declared tensors once `b_dg`, that of every token's log decays, is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.codegen.derive import Partial
from attnc.codegen.expression.printer import number
from attnc.codegen.expression.symbolic import ref_symbol
from attnc.codegen.graph import GraphBuilder
from attnc.codegen.index import Loaded, load_refs, scalar_names
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.channel_gates import channel_axes
from attnc.codegen.kernels.decay import index_bindings
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.gradient.pairs import shared_lines
from attnc.codegen.kernels.gradient.partial_sums import partial_sum


def channel_sum_arguments(facts: GradientFacts) -> list[TensorArgument]:
    """The workspaces of all derivatives of the log decay."""
    return [partial_sum(partial).argument() for partial in facts.derivation.decay]


def load_slopes(builder: GraphBuilder, facts: GradientFacts, region: str) -> Loaded:
    """Loads of what the derivatives of the log decay read, and the texts of their names."""
    algebra = facts.algebra
    assert algebra.log_decay is not None
    slopes = [partial.slope for partial in facts.derivation.decay]
    names = {symbol.name for slope in slopes for symbol in slope.free_symbols}
    refs = tuple(ref for ref in algebra.decay_refs if ref_symbol(ref).name in names)
    axes = {letter: replace(axis, region=region) for letter, axis in channel_axes(region).items()}
    scalars = frozenset(name for slope in slopes for name in scalar_names(slope, facts.declared))
    loaded = load_refs(refs, facts.declared, axes, two_lanes=True, names=scalars)
    # a 0-d tensor has no axis that would say where it is wanted
    nodes = tuple(replace(node, region=region) for node in loaded.nodes)
    builder.extend(nodes)
    bindings = dict(loaded.bindings)
    for slope in slopes:
        lines, index = index_bindings(slope)
        fresh = [line for line in lines if line.partition(" = ")[0] not in bindings.values()]
        if fresh:
            builder.map("f_index", region, (), *fresh, name=f"indices {len(bindings)}")
        bindings |= index
    return Loaded(nodes, bindings, loaded.tensors)


def store_channel_sums(
    builder: GraphBuilder,
    facts: GradientFacts,
    region: str,
    bindings: Mapping[str, str],
    *,
    tokens: str,
    tile: str,
    tiles: str,
) -> None:
    """Chain `b_dg` into every declared tensor: by token and channel, or summed over either.

    Sums over tokens stand at place `tile` of `tiles` of a head.
    """
    slopes = {_name(part): part.slope for part in facts.derivation.decay}
    slopes = {name: slope for name, slope in slopes.items() if not slope.is_number}
    lines = shared_lines(slopes, bindings, facts.printer)
    if lines:
        note = "through the declared log decay"
        reads = ("b_dg", "f_index")
        builder.map("b_dg", region, ("BC", "BK"), *lines, name="slopes", reads=reads, note=note)
    for partial in facts.derivation.decay:
        factor = _name(partial) if _name(partial) in slopes else ""
        if not factor and partial.slope != 1:
            factor = number(float(partial.slope))
        _store(builder, partial, region, factor, (tokens, tile, tiles))


def _store(
    builder: GraphBuilder,
    partial: Partial,
    region: str,
    factor: str,
    places: tuple[str, str, str],
) -> None:
    tokens, tile, tiles = places
    value = f"b_dg * {factor}" if factor else "b_dg"
    by_token, by_channel = "t" in partial.index, "k" in partial.index
    head = "(i_b * HQ + i_h)"
    name = f"du_{partial.label}"
    row = f"({head} * {tokens} + o_t)" if by_token else f"({head} * {tiles} + {tile})"
    if by_token and by_channel:
        builder.store(
            region, ("BC", "BK"), value, name=f"store {name}", reads=("b_dg",), tensor=name,
            address=f"{name} + {row}[:, None] * K + o_k[None, :]",
            guard="m_t[:, None] & m_k[None, :]",
        )  # fmt: skip
        return
    seen = f"b_t = tl.where(m_t[:, None] & m_k[None, :], {value}, 0.0)"
    shape: tuple[str, ...] = ("BC",) if by_token else ("BK",) if by_channel else ()
    total = f"tl.sum(b_t, {'1' if by_token else '0'})" if shape else "tl.sum(tl.sum(b_t, 1), 0)"
    place = f"{row} * K + o_k" if by_channel else row
    guard = "m_t" if by_token else "m_k" if by_channel else ""
    builder.store(
        region, shape, seen, total, name=f"store {name}", reads=("b_dg",), tensor=name,
        address=f"{name} + {place}", guard=guard,
    )  # fmt: skip


def _name(partial: Partial) -> str:
    return f"b_l_{partial.label}"
