"""Kernels that sum what a batch says of a learned transform, without atomics.

With h = A * T the outer stage of the declared factors and its twiddles, Z = h @ F2^T what they
give, dS = forward(dz) and dZ = conj(spectrum) * dS,

    dspectrum = sum over b     of conj(Z) * dS
    dskip     = sum over b, t  of x * dz
    dF2       = sum over b, c  of dZ^T @ conj(h)
    dF1       = sum over b, c  of (conj(T) * (dZ @ conj(F2))) @ x^T

A program sums the rows of its share, rows of all channels in one line; each partial sum has one
writer, and the launcher adds them in a fixed order.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.convolution.butterfly import LEARNED, ROW, fixed_dft, learned_dft
from attnc.codegen.convolution.dft import CONSTANTS, INNER, OUTER, POINTS, TABLES
from attnc.codegen.convolution.fft import load_gated, multiply
from attnc.codegen.convolution.sides import gate_name
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

_SHARE = ("lo = i_s * RPS", "hi = tl.minimum(B * C, lo + RPS)")
_OF_CHANNEL = ("lo = i_n * B + i_s * RPS", "hi = tl.minimum(i_n * B + B, lo + RPS)")
_ROW = ("i_c = (i_r // B).to(tl.int64)", "i_ba = (i_r % B).to(tl.int64)")
_SUMS = ("b_er", "b_ei")


def dspectrum_kernel(found: Filter, *, skip: bool) -> Kernel:
    """Partial sums [S, C, 2, N1, N2] of the spectrum's gradient, and [S, C] of the skip's."""
    builder = _start("butterfly_dspectrum", POINTS)
    learned, fixed = learned_dft(builder, STEP), fixed_dft(builder, STEP)
    learned.load_factors()
    fixed.load_factors()
    _load(builder, found, "b_xr", "v", "pregate", first=True)
    learned.forward(("b_xr", ""), ("b_ur", "b_ui"), "Z")
    _load(builder, found, "b_yr", "do", "postgate")
    fixed.forward(("b_yr", ""), ("b_zr", "b_zi"), "dS")
    reads = ("b_ur", "b_ui", "b_zr", "b_zi")
    for part, text in zip(
        _SUMS, ("b_ur * b_zr + b_ui * b_zi", "b_ur * b_zi - b_ui * b_zr"), strict=True
    ):
        builder.fold(part, STEP, POINTS, f"{part} += {text}", reads=(part, *reads))
    if skip:
        builder.fold("b_es", SETUP, ("NH",), "b_es = tl.zeros([NH], ACC)", note="the skip's")
        builder.fold("b_es", STEP, ("NH",), "b_es += tl.sum(b_xr.to(ACC) * b_yr.to(ACC), 1)",
                     reads=("b_es", "b_xr", "b_yr"))  # fmt: skip
        builder.store(FINISH, (), "tl.sum(b_es, 0)", name="store skips", reads=("b_es",),
                      tensor="skips", address="skips + i_s * C + i_n")  # fmt: skip
    kernel = _finish(builder, found, POINTS, "[S, C, 2, N1, N2]", ("l1", "l2"), by_channel=True)
    if not skip:
        return kernel
    sums = TensorArgument("skips", (), "acc", "[S, C]", written=True)
    return replace(kernel, tensors=(*kernel.tensors, sums))


def dinner_kernel(found: Filter) -> Kernel:
    """Partial sums [S, 2, N2, N2] of the gradient of the inner factor."""
    builder = _start("dinner", INNER)
    learned, fixed = learned_dft(builder, STEP), fixed_dft(builder, STEP)
    learned.load_factors("l1")
    fixed.load_factors()
    _load(builder, found, "b_yr", "do", "postgate", first=True)
    fixed.forward(("b_yr", ""), ("b_zr", "b_zi"), "dS")
    _round_products(builder)
    _load(builder, found, "b_xr", "v", "pregate")
    learned.enter(("b_xr", ""), "h")
    builder.map("b_hn", STEP, POINTS, "b_hn = -b_hi", name="negate b_hi", dtype="io",
                reads=("b_hi",))  # fmt: skip
    for part, pairs in zip(
        _SUMS, ((("r", "r"), ("i", "i")), (("i", "r"), ("r", "n"))), strict=True
    ):
        for place, (left, right) in enumerate(pairs):
            name = f"b_s{left}"
            turned = Operand(name, f"tl.trans({name})", ("N2", "N1"), transposed=True)
            _add(builder, part, place, INNER, turned, Operand(f"b_h{right}", f"b_h{right}", POINTS))
    return _finish(builder, found, INNER, "[S, 2, N2, N2]", ("l1",))


def douter_kernel(found: Filter) -> Kernel:
    """Partial sums [S, 2, N1, NH] of the gradient of the outer factor."""
    builder = _start("douter", OUTER)
    learned, fixed = learned_dft(builder, STEP, adjoint=True), fixed_dft(builder, STEP)
    learned.load_factors("t2")
    fixed.load_factors()
    _load(builder, found, "b_yr", "do", "postgate", first=True)
    fixed.forward(("b_yr", ""), ("b_zr", "b_zi"), "dS")
    _round_products(builder)
    learned.leave(("b_sr", "b_si"))
    _load(builder, found, "b_xr", "v", "pregate")
    right = Operand("b_xr", "tl.trans(b_xr)", ("N2", "NH"), transposed=True)
    for part, left in zip(_SUMS, ("b_hr", "b_hi"), strict=True):
        _add(builder, part, 0, OUTER, Operand(left, left, POINTS), right)
    return _finish(builder, found, OUTER, "[S, 2, N1, NH]", ("t2",))


def _start(name: str, shape: tuple[str, str]) -> GraphBuilder:
    builder = GraphBuilder(name)
    for part in _SUMS:
        note = "the sum over rows" if part == _SUMS[0] else ""
        zeros = f"{part} = tl.zeros([{', '.join(shape)}], ACC)"
        builder.fold(part, SETUP, shape, zeros, note=note)
    return builder


def _load(
    builder: GraphBuilder, found: Filter, buffer: str, name: str, field: str, *, first: bool = False
) -> None:  # fmt: skip
    gate = gate_name(found, field)
    lines = list(_ROW) if first else []
    lines.extend(
        f"p_{tensor}_a = {tensor} + i_ba * stride_{tensor}_b + i_c * stride_{tensor}_c"
        for tensor in (name, gate)
        if tensor
    )
    load_gated(
        builder, buffer, STEP, ROW.which, name, gate, "o_e", "o_e < T", tuple(lines)
    )  # fmt: skip


def _round_products(builder: GraphBuilder) -> None:
    """dZ, as an operand of the next product."""
    multiply(builder, STEP, pieces=False, mirrored=True)
    for part in ("b_sr", "b_si"):
        builder.map(part, STEP, POINTS, name=f"round {part}", dtype="io", reads=(part,))


def _add(
    builder: GraphBuilder, part: str, place: int, shape: tuple[str, str], left: Operand,
    right: Operand,
) -> None:  # fmt: skip
    sizes = f"[{', '.join(left.shape)}] @ [{', '.join(right.shape)}]"
    builder.dot(
        part, STEP, shape, left, right, name=f"sum {part} {place}", into=part, carried=True,
        note=sizes if (part, place) == (_SUMS[0], 0) else "",
    )  # fmt: skip


def _finish(
    builder: GraphBuilder, found: Filter, shape: tuple[str, str], layout: str,
    learned: tuple[str, ...], *, by_channel: bool = False,
) -> Kernel:  # fmt: skip
    rows, columns = shape
    lanes = {"N1": "r_1", "N2": "r_2", "NH": "r_h"}
    # r_2 counts the rows of the inner factor and its columns
    index = f"{lanes[rows]}[:, None] * {columns} + {lanes[columns]}[None, :]"
    for part, start in zip(_SUMS, ("", f" + {rows} * {columns}"), strict=True):
        builder.store(FINISH, shape, part, name=f"store {part}", reads=(part,), tensor="partial",
                      address=f"p_partial{start} + {index}")  # fmt: skip
    names = ("v", gate_name(found, "pregate"), "do", gate_name(found, "postgate"))
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in names
        if name
    ]
    if not by_channel:
        tensors.append(TensorArgument("spectrum", (), "io", "[C, 1, 2, N1, N2]"))
    tensors.extend((*TABLES, *(LEARNED[name] for name in learned)))
    tensors.append(TensorArgument("partial", (), "acc", layout, written=True))
    size = f"(2 * {rows} * {columns})"
    place = f"(i_s * C + i_n) * {size}" if by_channel else f"i_s * {size}"
    program = (
        ("# one program: RPS sequences of one channel", "i_n = tl.program_id(0) % C",
         "i_s = (tl.program_id(0) // C).to(tl.int64)")
        if by_channel else
        ("# one program: RPS rows, each a sequence of one channel",
         "i_s = tl.program_id(0).to(tl.int64)")
    )  # fmt: skip
    bounds = _OF_CHANNEL if by_channel else _SHARE
    return Kernel(
        builder.kernel, "", tuple(tensors), ("B", "T", "C", "RPS"), CONSTANTS, builder.build(),
        (*program, f"p_partial = partial + {place}", *bounds),
        (KeyLoop("lo", "hi", True, "rows: sequences of a channel"),), specialized=("T",),
    )  # fmt: skip
