"""A declared value: what a key hands over, made of v where its tile is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.graph import SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs, scalar_names
from attnc.codegen.kernel import TensorArgument
from attnc.codegen.kernels.decay import index_bindings
from attnc.dsl.variant import Declared, Variant


def value_axes(tokens: Axis, head: str = SETUP) -> Mapping[str, Axis]:
    """The axes of a tile of v: tokens down, channels across; `head` is where a program has one."""
    return {
        "b": Axis("i_b", ""),
        "h": Axis("i_h", "", region=head),
        "hkv": Axis("i_hkv", ""),
        "t": tokens,
        "j": tokens,
        "c": Axis("o_v", "column", guard="m_v", tile="BV"),
    }


STREAMED = value_axes(Axis("o_s", "row", edge_guard="m_s", tile="BS", region=STEP))
CHUNKED = value_axes(Axis("o_t", "row", guard="m_t", tile="BC", region=STEP))
CHUNK_OF_GROUP = value_axes(Axis("o_t", "row", guard="m_t", tile="BC", region=STEP), STEP)


def load_value(
    variant: Variant, algebra: Algebra, axes: Mapping[str, Axis], stem: str = "b_uv_"
) -> Loaded:
    """Loads of what the value reads, and the text of its names; `stem` starts those of buffers."""
    if algebra.value is None:
        return Loaded((), {}, ())
    declared: tuple[Declared, ...] = (*variant.params, *variant.inputs)
    names = scalar_names(algebra.value, declared)
    # a tensor that a decay or a score reads too is loaded for the value apart, in its own shape
    return load_refs(algebra.value_refs, declared, axes, two_lanes=True, names=names, stem=stem)


def map_value(
    builder: GraphBuilder,
    algebra: Algebra,
    loaded: Loaded,
    printer: Printer,
    region: str,
    shape: tuple[str, str],
    *,
    source: str = "b_v",
    target: str = "b_v",
    guard: str = "",
    edge_guard: str = "",
) -> None:
    """`target` = the declared value of the loaded tile `source`; nothing where it is v itself.

    Padding is zero after it: a value need not be 0, or even finite, where v is 0.
    """
    if algebra.value is None:
        return
    builder.extend(node for node in loaded.nodes if node.region == region)
    lines, index = index_bindings(algebra.value)
    bound = printer.bound({**loaded.bindings, **index, "v": "b_vc"})
    lines += [f"b_vc = {source}.to(ACC)", *bound.tile(target, algebra.value, "v")]
    if guard:
        lines.append(f"{target} = tl.where({guard}, {target}, 0.0)")
    reads = (source, "p_q", *(node.buffer for node in loaded.nodes))
    note = "what a key hands over, in the accumulator's precision"
    name = "value" if target == "b_v" else f"value {target}"
    builder.map(target, region, shape, *lines, name=name, dtype="io", reads=reads, note=note)
    if edge_guard:
        line = f"b_v = tl.where({edge_guard}, b_v, 0.0)"
        builder.map(
            "b_v", region, shape, line, name="value of padding", dtype="io", reads=("b_v",),
            masked_only=True,
        )  # fmt: skip


def setup_nodes(builder: GraphBuilder, loaded: Loaded) -> None:
    """The loads that stand before the loop."""
    builder.extend(node for node in loaded.nodes if node.region == SETUP)


def with_tensors(tensors: tuple[TensorArgument, ...], loaded: Loaded) -> tuple[TensorArgument, ...]:
    """`tensors`, and those that the value alone reads."""
    known = {tensor.name for tensor in tensors}
    return (*tensors, *(tensor for tensor in loaded.tensors if tensor.name not in known))
