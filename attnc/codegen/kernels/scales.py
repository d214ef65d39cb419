"""The scales of 8-bit tensors: those of q and k join the score's, that of v waits for the end.

All three are numbers of a program's heads, so no element of q, k or v is multiplied: a score has
one factor as it has without them, and a row of the output is multiplied once.
"""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import number
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import Axis, Loaded, load_refs
from attnc.dsl.expr import Ref
from attnc.dsl.scale_names import SCALES
from attnc.dsl.variant import Variant

# the buffer of what a score is multiplied by
SCORE_SCALE = "b_c"
# the type in which weights meet v: it holds every e4m3 number exactly, and a weight to 8 bits
WEIGHT_DTYPE = "bf16"
# products of bytes sum this many channels at a time
LEAST_CHANNELS = 32
UNSCALED = Loaded((), {}, ())


def load_scales(variant: Variant) -> Loaded:
    """Loads of the three scales, none where tensors come without."""
    if not variant.scaled:
        return UNSCALED
    refs = tuple(Ref(name, (axis,)) for name, axis in SCALES.items())
    axes = {"h": Axis("i_h", ""), "hkv": Axis("i_hkv", "")}
    return load_refs(refs, variant.inputs, axes, two_lanes=True)


def score_scale(builder: GraphBuilder, algebra: Algebra, scales: Loaded, factor: float) -> str:
    """The text of what a score is multiplied by: `factor`, times the scales of q and k.

    A scale that is not positive would turn the maximum into a minimum: it gives NaN, for all to
    see, since looking at it on the host would wait for the device.
    """
    if not algebra.scaled:
        return number(factor)
    product = " * ".join(_name(scales, name) for name in ("q_scale", "k_scale"))
    lines = (
        f"b_c = {product} * {number(factor)}",
        f'b_c = tl.where(b_c {"<" if factor < 0 else ">"} 0.0, b_c, float("nan"))',
    )
    reads = tuple(node.buffer for node in scales.nodes)
    note = "the scales of q and k and the score's are one factor"
    builder.map(SCORE_SCALE, SETUP, (), *lines, reads=reads, note=note)
    return SCORE_SCALE


def widen_values(builder: GraphBuilder, algebra: Algebra) -> None:
    """v as the weights meet it: an e4m3 weight would keep 3 bits of the 8 that bf16 keeps."""
    if not algebra.scaled:
        return
    note = "exact: weights are rounded to bf16, not to v's 3 bits"
    builder.map(
        "b_v", STEP, ("BS", "BV"), "b_v = b_v.to(tl.bfloat16)",
        name="widen v", dtype=WEIGHT_DTYPE, reads=("b_v",), note=note,
    )  # fmt: skip


def scale_output(builder: GraphBuilder, algebra: Algebra, scales: Loaded) -> None:
    """The scale of v, once a row."""
    if not algebra.scaled:
        return
    name = _name(scales, "v_scale")
    builder.map(
        "b_o", FINISH, ("BT", "BV"), f"b_o = b_o * {name}",
        name="scale of v", reads=("b_o", name), note="the scale of v",
    )  # fmt: skip


def _name(scales: Loaded, name: str) -> str:
    return scales.bindings[f"{name}[{SCALES[name]}]"]
