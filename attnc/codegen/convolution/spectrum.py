"""The kernel that sums the gradient of a filter's spectrum over a batch, without atomics.

    dspectrum[m] = sum over rows of conj(forward(u[n - m])) * forward(dz[n])

with two rows of one channel in each transform: the real part of the inverse is the sum over both.
A program sums the pairs of its split; each partial sum has one writer, and the launcher adds the
splits in a fixed order and goes back to taps.
"""

from __future__ import annotations

from attnc.codegen.convolution.dft import CONSTANTS, POINTS, TABLES, Dft
from attnc.codegen.convolution.fft import ROWS, Row, load_gated
from attnc.codegen.convolution.sides import gate_name
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

_SETUP = (
    "# blocks of dz whose partner m blocks before lies in the sequence",
    "n_first = tl.maximum(i_m, 0)",
    "NR = (NT - tl.maximum(i_m, -i_m)) * B",
    "lo = i_s * PPS",
    "hi = tl.minimum(tl.cdiv(NR, 2), lo + PPS)",
)


def dspectrum_kernel(found: Filter) -> Kernel:
    """Partial sums [S, C, pieces, 2, N1, N2] of the gradient of the spectrum."""
    before, after = gate_name(found, "pregate"), gate_name(found, "postgate")
    builder = GraphBuilder("dspectrum")
    dft = Dft(builder, STEP)
    dft.load_factors()
    for part in ("b_sr", "b_si"):
        note = "the sum over rows" if part == "b_sr" else ""
        builder.fold(part, SETUP, POINTS, f"{part} = tl.zeros([N1, N2], ACC)", note=note)
    for row in ROWS:
        _load(builder, "v", before, row, first=True)
    dft.forward(("b_xr", "b_xi"), ("b_ur", "b_ui"), "u, forward")
    for part in ("b_ur", "b_ui"):
        builder.map(part, STEP, POINTS, name=f"round {part}", dtype="io", reads=(part,))
    for row in ROWS:
        _load(builder, "do", after, row, first=False)
    dft.forward(("b_xr", "b_xi"), ("b_zr", "b_zi"), "dz, forward")
    reads = ("b_ur", "b_ui", "b_zr", "b_zi")
    builder.fold("b_sr", STEP, POINTS, "b_sr += b_ur * b_zr + b_ui * b_zi",
                 reads=("b_sr", *reads))  # fmt: skip
    builder.fold("b_si", STEP, POINTS, "b_si += b_ur * b_zi - b_ui * b_zr",
                 reads=("b_si", *reads))  # fmt: skip
    for part, start in (("b_sr", ""), ("b_si", " + N1 * N2")):
        builder.store(FINISH, POINTS, part, name=f"store {part}", reads=(part,), tensor="partial",
                      address=f"p_partial{start} + o_n")  # fmt: skip
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in ("v", before, "do", after)
        if name
    ]
    tensors.extend(TABLES)
    tensors.append(TensorArgument("partial", (), "acc", "[S, C, pieces, 2, N1, N2]", written=True))
    loop = KeyLoop("lo", "hi", True, "pairs of rows")
    return Kernel(
        "dspectrum", "", tuple(tensors), ("B", "T", "C", "FIRST", "LAST", "PPS"), CONSTANTS,
        builder.build(), _SETUP, (loop,), specialized=("T",),
    )  # fmt: skip


def _load(builder: GraphBuilder, name: str, gate: str, row: Row, *, first: bool) -> None:
    which, part, tokens, _ = row
    lines: list[str] = []
    if first:
        offset = "" if which == "a" else " + 1"
        lines.append(f"o_{which} = i_p * 2{offset}")
        lines.append(f"i_n{which} = n_first + o_{which} // B")
        lines.append(f"i_b{which} = (o_{which} % B).to(tl.int64)")
        if which == "b":
            lines.append("T_b = tl.where(o_b < NR, T, 0)")
    block = f"(i_n{which} - i_m)" if first else f"i_n{which}"
    side = "s" if first else "t"
    lines.append(f"o_{side}{which} = {block} * BL + o_e")
    lines.extend(
        f"p_{tensor}_{which} = p_{tensor} + i_b{which} * stride_{tensor}_b"
        for tensor in (name, gate)
        if tensor
    )
    load_gated(
        builder, f"b_x{part}", STEP, which, name, gate, f"o_{side}{which}",
        f"o_{side}{which} < {tokens}", tuple(lines),
    )  # fmt: skip
