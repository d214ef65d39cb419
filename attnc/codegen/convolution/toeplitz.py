"""Kernels that multiply blocks of tokens by Toeplitz blocks of a filter.

Tokens of one channel, BT a row, are a matrix x[n, e]; a filter over i - j is then a sum of products
with BT by BT Toeplitz matrices, one for each offset m between blocks:

    z[n, r] = sum_m x[n - m, e] W_m[e, r]        W_m[e, r] = w[m * BT + r - e]

Rows of all sequences of a batch fill a tile, so that no product is a matrix by a vector. The same
kernel with e - r in place of r - e is the transpose, which the gradient of x needs.
"""

from __future__ import annotations

from attnc.codegen.convolution.sides import Sides, dgate_sides, dvalue_sides, forward_sides
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

ROWS, TILE = ("BR", "BT"), ("BT", "BT")
SCALARS = ("B", "T", "C", "LOW", "TAPS", "FIRST", "LAST")
_BLOCKS = ("b", "c")
_SETUP = (
    "# blocks so far apart that no token of one meets the filter at the other are not visited",
    "n_first = i_r * BR % NT",
    "n_last = n_first + BR - 1",
    "lo = tl.where(n_last < NT, tl.maximum(FIRST, n_first - NT + 1), FIRST)",
    "hi = tl.where(n_last < NT, tl.minimum(LAST, n_last), LAST) + 1",
)


def forward_kernel(found: Filter) -> Kernel:
    """o = postgate * (w * (pregate v) + D pregate v)."""
    return _kernel(found, forward_sides(found, "toeplitz"))


def dvalue_kernel(found: Filter, *, gate_gradient: bool) -> Kernel:
    """dv = pregate * du, and with `gate_gradient` dpregate = du * v."""
    return _kernel(found, dvalue_sides(found, "dtoeplitz"), gate_gradient=gate_gradient)


def dgate_kernel(found: Filter) -> Kernel:
    """dpostgate = do * z: the forward again, multiplied by what comes in."""
    return _kernel(found, dgate_sides(found, "dpostgate"))


def _kernel(found: Filter, sides: Sides, *, gate_gradient: bool = False) -> Kernel:
    builder = GraphBuilder(sides.name)
    builder.fold("b_z", SETUP, ROWS, "b_z = tl.zeros([BR, BT], ACC)", note="accumulator")
    _load_source(builder, sides)
    _load_filter(builder, found, sides)
    builder.dot(
        "b_z", STEP, ROWS, Operand("b_x", "b_x", ROWS), Operand("b_w", "b_w.to(IO)", TILE),
        name="filter", into="b_z", carried=True, note="[BR, BT] @ [BT, BT]",
    )  # fmt: skip
    _finish(builder, found, sides, gate_gradient=gate_gradient)
    tensors = [
        TensorArgument(name, _BLOCKS, "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in sides.tensors(*(["v"] if gate_gradient else []))
    ]
    weight = f"u_{found.weight.name}"
    tensors.append(
        TensorArgument(weight, ("c", "d"), "tensor", "[C, taps]", given=found.weight.name)
    )
    if found.skip is not None:
        name = found.skip.name
        tensors.append(TensorArgument(f"u_{name}", ("c",), "tensor", "[C]", given=name))
    tensors.append(TensorArgument(sides.result, (), "io", "[B, C, T]", written=True))
    if gate_gradient:
        tensors.append(TensorArgument("dpre", (), "io", "[B, C, T]", written=True))
    loop = KeyLoop("lo", "hi", True, "offsets between blocks, in blocks")
    return Kernel(
        sides.name, "", tuple(tensors), SCALARS, ("BR", "BT"), builder.build(), _SETUP, (loop,)
    )


def _load_source(builder: GraphBuilder, sides: Sides) -> None:
    builder.load(
        "b_x", STEP, ROWS, dtype="io", tensor=sides.source, note="[BR, BT]",
        lines=("o_s = o_t - i_m * BT", "m_s = m_r[:, None] & (o_s >= 0) & (o_s < T)"),
        address=f"p_{sides.source}[:, None] + o_s", guard="m_s",
    )  # fmt: skip
    if sides.gate:
        builder.load(
            "b_a", STEP, ROWS, dtype="io", tensor=sides.gate,
            address=f"p_{sides.gate}[:, None] + o_s", guard="m_s",
        )  # fmt: skip
        builder.map(
            "b_x", STEP, ROWS, "b_x = b_x.to(ACC) * b_a.to(ACC)", name="gate", dtype="io",
            reads=("b_x", "b_a"),
        )  # fmt: skip


def _load_filter(builder: GraphBuilder, found: Filter, sides: Sides) -> None:
    apart = "r_t[:, None] - r_t[None, :]" if sides.mirrored else "r_t[None, :] - r_t[:, None]"
    sign = "-" if sides.mirrored else "+"
    weight = f"u_{found.weight.name}"
    note = "W_m: " + ("w[c, -(m * BT + r - e)]" if sides.mirrored else "w[c, m * BT + r - e]")
    builder.load(
        "b_w", STEP, TILE, dtype="acc", tensor=weight, note=note,
        lines=(
            f"o_d = {apart} {sign} i_m * BT - LOW",
        ),
        address=f"p_{weight} + o_d * stride_{weight}_d", guard="(o_d >= 0) & (o_d < TAPS)",
    )  # fmt: skip


def _finish(builder: GraphBuilder, found: Filter, sides: Sides, *, gate_gradient: bool) -> None:
    def load(buffer: str, name: str, note: str = "") -> None:
        builder.load(
            buffer, FINISH, ROWS, dtype="acc", tensor=name, note=note,
            address=f"p_{name}[:, None] + o_t", guard="m_t", name=f"load {buffer} {name}",
        )  # fmt: skip

    if found.skip is not None:
        skip = f"u_{found.skip.name}"
        builder.load("b_d", FINISH, (), dtype="acc", tensor=skip, address=f"p_{skip}",
                     note="the token's own value, unfiltered")  # fmt: skip
        load("b_u", sides.source)
        reads: tuple[str, ...] = ("b_z", "b_d", "b_u")
        own = "b_u"
        if sides.gate:
            load("b_h", sides.gate)
            own, reads = "(b_u * b_h).to(IO).to(ACC)", (*reads, "b_h")
        builder.map("b_z", FINISH, ROWS, f"b_z = b_z + b_d * {own}", name="skip", reads=reads)
    if gate_gradient:
        load("b_v", "v", "the gradient of the gate before the filter")
        _store(builder, "dpre", "b_z * b_v", ("b_z", "b_v"))
    if sides.after:
        load("b_g", sides.after)
        builder.map("b_z", FINISH, ROWS, "b_z = b_z * b_g", name="after", reads=("b_z", "b_g"))
    _store(builder, sides.result, "b_z", ("b_z",), note="[BR, BT]")


def _store(
    builder: GraphBuilder, name: str, value: str, reads: tuple[str, ...], note: str = ""
) -> None:
    shown = value if value.isidentifier() else f"({value})"
    builder.store(
        FINISH, ROWS, f"{shown}.to({name}.dtype.element_ty)", name=f"store {name}",
        reads=reads, tensor=name, note=note, address=f"p_{name}[:, None] + o_t", guard="m_t",
    )  # fmt: skip
