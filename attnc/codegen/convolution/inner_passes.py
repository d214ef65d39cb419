"""The inner transforms of a transform that no program holds: M = N1 * N2 points for each k0.

A program has one row k0 of one pair of sequences, M complex numbers: it transforms them, multiplies
by the filter's spectrum, transforms back and leaves them where they were. No point is padding here,
so NH = N1. The filter goes one way alone: its transform lies in the order in which the others come.
"""

from __future__ import annotations

from attnc.codegen.convolution.dft import CONSTANTS, HALF, POINTS, TABLES, Dft
from attnc.codegen.convolution.fft import multiply
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop

INNER_PASSES = ("inner", "conjugate", "filter_inner", "inner_sums")
_SPECTRUM = TensorArgument("spectrum", (), "io", "[C, NO, 2, N1, N2]")
_PARTS = (("r", ""), ("i", " + N1 * N2"))


def inner_kernel(name: str, mid: str, *, mirrored: bool) -> Kernel:
    """Each row of the workspace filtered in place, by the conjugate spectrum where `mirrored`."""
    builder = GraphBuilder(name)
    dft = Dft(builder, SETUP)
    dft.load_factors()
    _load(builder, SETUP, mid, "b_x", _row(mid))
    dft.forward(("b_xr", "b_xi"), ("b_zr", "b_zi"), "there")
    multiply(builder, SETUP, pieces=False, mirrored=mirrored, place="i_q")
    for part in ("b_sr", "b_si"):
        builder.map(part, SETUP, POINTS, name=f"round {part}", dtype="io", reads=(part,))
    dft.inverse(("b_sr", "b_si"), ("b_yr", "b_yi"))
    for part, start in _PARTS:
        builder.store(
            FINISH, HALF, f"b_y{part}.to(IO)", name=f"store {mid} {part}", reads=(f"b_y{part}",),
            tensor=mid, address=f"p_{mid}{start} + o_e",
        )  # fmt: skip
    tensors = (_mid(mid, written=True), _SPECTRUM, *TABLES)
    return Kernel(name, "", tensors, ("NP",), ("NO", *CONSTANTS), builder.build())


def filter_inner_kernel() -> Kernel:
    """The spectrum [C, NO, 2, N1, N2] of the filter, not scaled."""
    builder = GraphBuilder("filter_inner")
    dft = Dft(builder, SETUP)
    dft.load_factors()
    _load(builder, SETUP, "wmid", "b_x", _row("wmid"))
    dft.forward(("b_xr", "b_xi"), ("b_zr", "b_zi"), "there")
    for part, _ in _PARTS:
        note = "stages are scaled by the root of their size; a spectrum is not"
        builder.map(
            f"b_z{part}", FINISH, POINTS, f"b_z{part} = b_z{part} * (NO * N1 * N2) ** 0.5",
            name=f"scale {part}", dtype="io", reads=(f"b_z{part}",),
            note=note if part == "r" else "",
        )  # fmt: skip
    for part, start in _PARTS:
        lines = ("p_spectrum = spectrum + i_q * (2 * N1 * N2)",) if part == "r" else ()
        builder.store(
            FINISH, POINTS, *lines, f"b_z{part}", name=f"store {part}", reads=(f"b_z{part}",),
            tensor="spectrum", address=f"p_spectrum{start} + o_n",
        )  # fmt: skip
    written = TensorArgument("spectrum", (), "io", _SPECTRUM.layout, written=True)
    tensors = (_mid("wmid"), written, *TABLES)
    return Kernel("filter_inner", "", tensors, ("NP",), ("NO", *CONSTANTS), builder.build())


def inner_sums_kernel() -> Kernel:
    """Partial sums [S, C, NO, 2, N1, N2] of the spectrum's gradient over PPS pairs each."""
    builder = GraphBuilder("inner_sums")
    dft = Dft(builder, STEP)
    dft.load_factors()
    for part in ("b_sr", "b_si"):
        note = "the sum over pairs" if part == "b_sr" else ""
        builder.fold(part, SETUP, POINTS, f"{part} = tl.zeros([N1, N2], ACC)", note=note)
    _load(builder, STEP, "umid", "b_x", _row("umid"))
    dft.forward(("b_xr", "b_xi"), ("b_ur", "b_ui"), "u, forward")
    for part in ("b_ur", "b_ui"):
        builder.map(part, STEP, POINTS, name=f"round {part}", dtype="io", reads=(part,))
    _load(builder, STEP, "zmid", "b_x", _row("zmid"))
    dft.forward(("b_xr", "b_xi"), ("b_zr", "b_zi"), "dz, forward")
    reads = ("b_ur", "b_ui", "b_zr", "b_zi")
    for part, text in (
        ("b_sr", "b_ur * b_zr + b_ui * b_zi"), ("b_si", "b_ur * b_zi - b_ui * b_zr"),
    ):  # fmt: skip
        builder.fold(part, STEP, POINTS, f"{part} += {text}", reads=(part, *reads))
    for part, start in (("b_sr", ""), ("b_si", " + N1 * N2")):
        builder.store(FINISH, POINTS, part, name=f"store {part}", reads=(part,), tensor="partial",
                      address=f"p_partial{start} + o_n")  # fmt: skip
    tensors = (
        _mid("umid"), _mid("zmid"), *TABLES,
        TensorArgument("partial", (), "acc", "[S, C, NO, 2, N1, N2]", written=True),
    )  # fmt: skip
    setup = (
        "lo = i_s * PPS", "hi = tl.minimum(NP, lo + PPS)",
        "p_partial = partial + (i_s * C * NO + i_q) * (2 * N1 * N2)",
    )  # fmt: skip
    return Kernel(
        "inner_sums", "", tensors, ("C", "NP", "PPS"), ("NO", *CONSTANTS), builder.build(), setup,
        (KeyLoop("lo", "hi", True, "pairs of sequences"),),
    )  # fmt: skip


def _row(mid: str) -> str:
    return f"p_{mid} = {mid} + ((i_c * NP + i_p) * NO + i_q % NO) * (2 * N1 * N2)"


def _load(builder: GraphBuilder, region: str, mid: str, buffer: str, line: str) -> None:
    for part, start in _PARTS:
        builder.load(
            f"{buffer}{part}", region, HALF, dtype="io", tensor=mid, name=f"load {mid} {part}",
            address=f"p_{mid}{start} + o_e", lines=(line,) if part == "r" else (),
            note="one row k0 of a pair: [NH, N2]" if part == "r" else "",
        )  # fmt: skip


def _mid(name: str, *, written: bool = False) -> TensorArgument:
    return TensorArgument(name, (), "io", "[C, NP, NO, 2, M]", written=written)
