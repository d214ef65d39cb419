"""Kernels that filter two rows of NH * N2 tokens as one complex row, all of it in one program.

A row is a block of BL = NH * N2 tokens of one sequence, zero-padded to N = 2 BL points. The filter
is real, so that two rows of one channel are the real and the imaginary part of one transform.
Blocks m apart are joined by the taps of offsets within BL of m * BL; each such piece of the filter
has a spectrum of its own, and the products of all pieces are summed before the one inverse:

    z[n] = inverse(sum_m spectrum[m] * forward(x[n - m]))

Where a sequence is one block, m = 0 alone is left and there is no loop. The mirrored filter, which
the gradient of x needs, has the conjugate spectrum and takes x[n + m].
"""

from __future__ import annotations

from typing import NamedTuple

from attnc.codegen.convolution.dft import CONSTANTS, HALF, POINTS, TABLES, Dft
from attnc.codegen.convolution.sides import Sides, dgate_sides, dvalue_sides, forward_sides
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter


class Row(NamedTuple):
    """One row of a program: its letter, the part of a transform, its tokens; `start` of its block.

    A row without a start is a block from the first token on.
    """

    which: str
    part: str
    tokens: str
    start: str = ""


# row a is the real part, row b the imaginary one
ROWS = (Row("a", "r", "T", "i_na * BL"), Row("b", "i", "T_b", "i_nb * BL"))
_FORWARD_RANGE = ("lo = tl.maximum(FIRST, i_na - NT + 1)", "hi = tl.minimum(LAST, i_nb) + 1")
_MIRRORED_RANGE = ("lo = tl.maximum(FIRST, -i_nb)", "hi = tl.minimum(LAST, NT - 1 - i_na) + 1")


def forward_kernel(found: Filter, *, pieces: bool) -> Kernel:
    """o = postgate * (w * (pregate v) + D pregate v)."""
    return _kernel(found, forward_sides(found, "fft"), pieces=pieces)


def dvalue_kernel(found: Filter, *, pieces: bool, gate_gradient: bool) -> Kernel:
    """dv = pregate * du, and with `gate_gradient` dpregate = du * v."""
    sides = dvalue_sides(found, "dfft")
    return _kernel(found, sides, pieces=pieces, gate_gradient=gate_gradient)


def dgate_kernel(found: Filter, *, pieces: bool) -> Kernel:
    """dpostgate = do * z: the forward again, multiplied by what comes in."""
    return _kernel(found, dgate_sides(found, "dgate"), pieces=pieces)


def _kernel(found: Filter, sides: Sides, *, pieces: bool, gate_gradient: bool = False) -> Kernel:
    builder = GraphBuilder(sides.name)
    region = STEP if pieces else SETUP
    dft = Dft(builder, region)
    dft.load_factors()
    if pieces:
        for part in ("b_sr", "b_si"):
            note = "the sum over pieces" if part == "b_sr" else ""
            builder.fold(part, SETUP, POINTS, f"{part} = tl.zeros([N1, N2], ACC)", note=note)
    for row in ROWS:
        _load_row(builder, sides, row, region, pieces=pieces)
    dft.forward(("b_xr", "b_xi"), ("b_zr", "b_zi"), "both rows, forward")
    multiply(builder, region, pieces=pieces, mirrored=sides.mirrored)
    dft.region = FINISH if pieces else SETUP
    for part in ("b_sr", "b_si"):
        builder.map(part, dft.region, POINTS, name=f"round {part}", dtype="io", reads=(part,))
    dft.inverse(("b_sr", "b_si"), ("b_yr", "b_yi"))
    for row in ROWS:
        finish_row(builder, found, sides, row, gate_gradient=gate_gradient)
    loop = KeyLoop("lo", "hi", True, "pieces of the filter, a block apart")
    return Kernel(
        sides.name, "", filter_tensors(found, sides, gate_gradient=gate_gradient),
        ("B", "T", "C", *(("FIRST", "LAST") if pieces else ())), CONSTANTS, builder.build(),
        (_MIRRORED_RANGE if sides.mirrored else _FORWARD_RANGE) if pieces else (),
        (loop,) if pieces else (), specialized=("T",),
    )  # fmt: skip


def filter_tensors(
    found: Filter, sides: Sides, *, gate_gradient: bool,
    tables: tuple[TensorArgument, ...] = TABLES,
) -> tuple[TensorArgument, ...]:  # fmt: skip
    """The arguments of a kernel that filters: what it reads, its tables, what it writes."""
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in sides.tensors(*(["v"] if gate_gradient else []))
    ]
    tensors.append(TensorArgument("spectrum", (), "io", "[C, pieces, 2, N1, N2]"))
    tensors.extend(tables)
    if found.skip is not None:
        name = found.skip.name
        tensors.append(TensorArgument(f"u_{name}", ("c",), "tensor", "[C]", given=name))
    tensors.append(TensorArgument(sides.result, (), "io", "[B, C, T]", written=True))
    if gate_gradient:
        tensors.append(TensorArgument("dpre", (), "io", "[B, C, T]", written=True))
    return tuple(tensors)


def _load_row(builder: GraphBuilder, sides: Sides, row: Row, region: str, *, pieces: bool) -> None:
    which, part, tokens, _ = row
    away = "+" if sides.mirrored else "-"
    start = f"(i_n{which} {away} i_m) * BL + o_e" if pieces else "o_e"
    guard = f"m_{which}" if pieces else f"o_e < {tokens}"
    lines: tuple[str, ...] = ()
    if pieces:
        lines = (
            f"o_s{which} = {start}",
            f"m_{which} = (o_s{which} >= 0) & (o_s{which} < {tokens})",
        )
    offset = f"o_s{which}" if pieces else "o_e"
    load_gated(builder, f"b_x{part}", region, which, sides.source, sides.gate, offset, guard, lines)


def load_gated(
    builder: GraphBuilder, buffer: str, region: str, which: str, source: str, gate: str,
    offset: str, guard: str, lines: tuple[str, ...], *, shape: tuple[str, str] = HALF,
) -> None:  # fmt: skip
    """One row [NH, N2] of a tensor, times its gate where it has one, rounded for a product."""
    builder.load(
        buffer, region, shape, dtype="io", tensor=source, guard=guard, lines=lines,
        address=f"p_{source}_{which} + {offset}", name=f"load {source} {which}",
        note=f"row {which}: [{', '.join(shape)}]" if which == "a" else "",
    )  # fmt: skip
    if not gate:
        return
    held = f"b_g{which}"
    builder.load(
        held, region, shape, dtype="io", tensor=gate, guard=guard, name=f"load {gate} {which}",
        address=f"p_{gate}_{which} + {offset}",
    )  # fmt: skip
    builder.map(
        buffer, region, shape, f"{buffer} = {buffer}.to(ACC) * {held}.to(ACC)",
        name=f"gate {source} {which}", dtype="io", reads=(buffer, held),
    )  # fmt: skip


def multiply(
    builder: GraphBuilder, region: str, *, pieces: bool, mirrored: bool, place: str = "i_c"
) -> None:
    """b_s of b_z times the spectrum, or its conjugate where `mirrored`; added up over pieces."""
    piece = "(i_c * (LAST - FIRST + 1) + i_m - FIRST)" if pieces else place
    lines = (f"p_s = spectrum + {piece} * (2 * N1 * N2)",)
    for part, start in (("r", ""), ("i", " + N1 * N2")):
        builder.load(
            f"b_w{part}", region, POINTS, tensor="spectrum", address=f"p_s{start} + o_n",
            note="the filter's transform, in the order of the products" if part == "r" else "",
            lines=lines if part == "r" else (),
        )  # fmt: skip
    less, more = ("+", "-") if mirrored else ("-", "+")
    real = f"b_zr * b_wr {less} b_zi * b_wi"
    imag = f"b_zi * b_wr {more} b_zr * b_wi"
    for part, text in (("b_sr", real), ("b_si", imag)):
        reads = ("b_zr", "b_zi", "b_wr", "b_wi")
        if pieces:
            builder.fold(part, region, POINTS, f"{part} += {text}", reads=(part, *reads))
        else:
            builder.map(part, region, POINTS, f"{part} = {text}", reads=reads)


def finish_row(
    builder: GraphBuilder, found: Filter, sides: Sides, row: Row, *, gate_gradient: bool,
    region: str = FINISH, shape: tuple[str, str] = HALF,
) -> None:  # fmt: skip
    """Skip and gates of one row [NH, N2] of a result b_y, and its store."""
    which, part, tokens, start = row
    result, out, guard = f"b_y{part}", f"o_t{which}" if start else "o_e", f"m_t{which}"
    counted: list[str] = [f"{out} = {start} + o_e"] if start else []
    counted.append(f"{guard} = {out} < {tokens}")

    def load(buffer: str, name: str) -> None:
        lines, counted[:] = tuple(counted), []
        builder.load(
            buffer, region, shape, dtype="acc", tensor=name, lines=lines,
            address=f"p_{name}_{which} + {out}", guard=guard, name=f"load {buffer} {which} {name}",
        )  # fmt: skip

    def store(name: str, value: str, reads: tuple[str, ...], note: str = "") -> None:
        lines, counted[:] = tuple(counted), []
        builder.store(
            region, shape, *lines, f"{value}.to({name}.dtype.element_ty)", reads=reads, tensor=name,
            name=f"store {name} {which}", address=f"p_{name}_{which} + {out}", guard=guard,
            note=note,
        )  # fmt: skip

    if found.skip is not None:
        skip = f"u_{found.skip.name}"
        if which == "a":
            builder.load("b_d", region, (), dtype="acc", tensor=skip, address=f"p_{skip}",
                         note="the token's own value, unfiltered")  # fmt: skip
        load("b_u", sides.source)
        own = "b_u"
        reads: tuple[str, ...] = (result, "b_d", "b_u")
        if sides.gate:
            load("b_h", sides.gate)
            own, reads = "(b_u * b_h).to(IO).to(ACC)", (*reads, "b_h")
        builder.map(result, region, shape, f"{result} = {result} + b_d * {own}",
                    name=f"skip {which}", reads=reads)  # fmt: skip
    if gate_gradient:
        load("b_v", "v")
        store("dpre", f"({result} * b_v)", (result, "b_v"), "the gradient of the gate before")
    if sides.after:
        load("b_g", sides.after)
        builder.map(result, region, shape, f"{result} = {result} * b_g", name=f"after {which}",
                    reads=(result, "b_g"))  # fmt: skip
    store(sides.result, result, (result,), "" if which == "b" else f"[{', '.join(shape)}]")
