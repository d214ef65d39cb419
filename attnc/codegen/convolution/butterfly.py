"""Kernels that filter one sequence by learned factors, all of it in one program.

A sequence is a block of NH * N2 tokens, zero-padded to N points. Its transform is by the declared
factors, the filter's and the way back are DFTs:

    z = inverse(spectrum * learned(x))              dx = adjoint(conj(spectrum) * forward(dz))

where the adjoint goes back through the conjugates of the declared factors. What they give of two
sequences does not come apart by real and imaginary part, so a program has one: x is real.
"""

from __future__ import annotations

from attnc.codegen.convolution.dft import CONSTANTS, POINTS, TABLES, Dft
from attnc.codegen.convolution.fft import Row, filter_tensors, finish_row, load_gated, multiply
from attnc.codegen.convolution.sides import Sides, dgate_sides, dvalue_sides, forward_sides
from attnc.codegen.graph import SETUP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.dsl.convolution import Filter

# one row, which is real
ROW = Row("a", "r", "T")
LEARNED = {
    "l1": TensorArgument("l1", (), "io", "[3, N1, NH]: re, im, -im, declared"),
    "l2": TensorArgument("l2", (), "io", "[3, N2, N2]: re, im, -im, declared"),
    "t2": TensorArgument("t2", (), "io", "[3, N2, N2]: the same, transposed"),
}


def learned_dft(builder: GraphBuilder, region: str, *, adjoint: bool = False) -> Dft:
    """The transform by declared factors, or the way back through them."""
    return Dft(builder, region, "l1", "t2" if adjoint else "l2", paired=False)


def fixed_dft(builder: GraphBuilder, region: str) -> Dft:
    """The DFT of one real row."""
    return Dft(builder, region, paired=False)


def forward_kernel(found: Filter) -> Kernel:
    """o = postgate * (z + D pregate v)."""
    return _kernel(found, forward_sides(found, "butterfly"))


def dvalue_kernel(found: Filter, *, gate_gradient: bool) -> Kernel:
    """dv = pregate * du, and with `gate_gradient` dpregate = du * v."""
    return _kernel(found, dvalue_sides(found, "dbutterfly"), gate_gradient=gate_gradient)


def dgate_kernel(found: Filter) -> Kernel:
    """dpostgate = do * z: the forward again, multiplied by what comes in."""
    return _kernel(found, dgate_sides(found, "butterfly_dgate"))


def _kernel(found: Filter, sides: Sides, *, gate_gradient: bool = False) -> Kernel:
    builder = GraphBuilder(sides.name)
    adjoint = sides.mirrored
    learned = learned_dft(builder, SETUP, adjoint=adjoint)
    first, last = learned, fixed_dft(builder, SETUP)
    if adjoint:
        first, last = last, first
    load_gated(
        builder, "b_xr", SETUP, ROW.which, sides.source, sides.gate, "o_e", "o_e < T", ()
    )  # fmt: skip
    # each pair of factors is loaded where it is used: they need not lie in SRAM together
    first.load_factors()
    first.forward(("b_xr", ""), ("b_zr", "b_zi"), "there")
    multiply(builder, SETUP, pieces=False, mirrored=adjoint)
    for part in ("b_sr", "b_si"):
        builder.map(part, SETUP, POINTS, name=f"round {part}", dtype="io", reads=(part,))
    last.load_factors()
    last.inverse(("b_sr", "b_si"), ("b_yr", ""))
    finish_row(builder, found, sides, ROW, gate_gradient=gate_gradient)
    tables = (*TABLES, LEARNED["l1"], LEARNED["t2" if adjoint else "l2"])
    return Kernel(
        sides.name, "", filter_tensors(found, sides, gate_gradient=gate_gradient, tables=tables),
        ("B", "T", "C"), CONSTANTS, builder.build(), specialized=("T",),
    )  # fmt: skip
