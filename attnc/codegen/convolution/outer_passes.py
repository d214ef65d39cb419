"""The outer stage of a transform that no program holds: a DFT of NO points over strided columns.

A sequence of NO / 2 rows of M tokens is zero-padded to NO rows. With n = n0 * M + m and
k = k0 + NO * k',

    A[k0, m] = T[k0, m] sum_n0 F0[k0, n0] x[n0, m]          T[k0, m] = exp(-2 pi i k0 m / N)

and what is left is a transform of M points for each k0, which `inner_passes` has. Two sequences of
a channel are the real and the imaginary part. Stacked, they fill NO rows, and real matrices
[NO, NO] do both at once: rows of the stack times [Re F0 | -Im F0] are Re A, times [Im F0 | Re F0]
Im A. The way back is by the transposes of the same two matrices.

A program keeps its twiddles, BM columns of them, and goes over sequences of all channels.
"""

from __future__ import annotations

from attnc.codegen.convolution.fft import Row, finish_row, load_gated
from attnc.codegen.convolution.sides import Sides
from attnc.codegen.graph import SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

COLUMNS, SQUARE = ("NO", "BM"), ("NO", "NO")
CONSTANTS = ("NO", "M", "BM")
OUTER_PASSES = ("spread", "dspread", "filter_spread", "collect", "dcollect", "gate_collect")
# both sequences, one above the other
ROW = Row("a", "r", "T_a")
_TABLES = (
    TensorArgument("f0", (), "io", "[2, NO, NO]: what gives re, im"),
    TensorArgument("twiddle0", (), "acc", "[2, NO, M]"),
)
_PAIRS = (
    "i_c = (i_r // NP).to(tl.int64)",
    "o_a = i_r % NP * 2 + r_o[:, None] // (NO // 2)",
    "# the last pair may have one sequence",
    "T_a = tl.where(o_a < B, T, 0)",
    "i_ba = tl.minimum(o_a, B - 1).to(tl.int64)",
)
_LOOP = KeyLoop("lo", "hi", True, "pairs of sequences, of all channels")


def spread_kernel(sides: Sides, name: str, mid: str) -> Kernel:
    """A [C, NP, NO, 2, M] of what the sides filter: the outer stage going in."""
    builder = GraphBuilder(name)
    _load_tables(builder)
    lines = (*_PAIRS, *(_pointer(tensor, True) for tensor in (sides.source, sides.gate) if tensor))
    load_gated(
        builder, "b_x", STEP, ROW.which, sides.source, sides.gate, "o_e", "o_e < T_a", lines,
        shape=COLUMNS,
    )  # fmt: skip
    _spread(builder, mid, "i_r")
    names = [name for name in (sides.source, sides.gate) if name]
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in names
    ]
    return _kernel(builder, (*tensors, *_TABLES, _mid(mid, written=True)), ("B", "T"))


def filter_spread_kernel(found: Filter) -> Kernel:
    """A [C, 1, NO, 2, M] of the taps, at their offsets modulo N: a real row without padding."""
    weight = f"u_{found.weight.name}"
    builder = GraphBuilder("filter_spread")
    _load_tables(builder, "g0")
    builder.load(
        "b_x", STEP, COLUMNS, tensor=weight, note="taps: [NO, BM]",
        lines=(
            "o_d = r_o[:, None] * M + o_m[None, :]",
            "# negative offsets stand in the second half",
            "o_d = tl.where(r_o[:, None] < NO // 2, o_d, o_d - NO * M) - LOW",
            f"p_{weight} = {weight} + tl.cast(i_r, tl.int64) * stride_{weight}_c",
        ),
        address=f"p_{weight} + o_d * stride_{weight}_d", guard="(o_d >= 0) & (o_d < TAPS)",
        dtype="acc",
    )  # fmt: skip
    builder.map("b_x", STEP, COLUMNS, name="round taps", dtype="io", reads=("b_x",))
    _spread(builder, "wmid", "i_r")
    tensors = (
        TensorArgument(weight, ("c", "d"), "tensor", "[C, taps]", given=found.weight.name),
        TensorArgument("g0", (), "io", "[2, NO, NO]: re, im"),
        _TABLES[1],
        _mid("wmid", written=True),
    )
    return _kernel(builder, tensors, ("LOW", "TAPS"))


def collect_kernel(
    found: Filter, sides: Sides, name: str, mid: str, *, gate_gradient: bool = False
) -> Kernel:
    """The result of what the inner passes left: the outer stage going back, gates and skip."""
    builder = GraphBuilder(name)
    _load_tables(builder)
    names = sides.tensors(*(["v"] if gate_gradient else []))
    # the gate of the source is read for the skip alone
    read = tuple(
        name for name in names
        if found.skip is not None or name == sides.after or (gate_gradient and name == "v")
    )  # fmt: skip
    results = (sides.result, *(("dpre",) if gate_gradient else ()))
    lines = (*_PAIRS, *(_pointer(name, True) for name in read))
    lines += tuple(_pointer(name, False) for name in results)
    if found.skip is not None:
        skip = f"u_{found.skip.name}"
        lines += (f"p_{skip} = {skip} + i_c * stride_{skip}_c",)
    lines += (f"p_{mid} = {mid} + tl.cast(i_r, tl.int64) * (2 * NO * M)",)
    for part, start in (("r", ""), ("i", " + M")):
        builder.load(
            f"b_a{part}", STEP, COLUMNS, tensor=mid, address=f"p_{mid}{start} + o_q",
            lines=lines if part == "r" else (), note="[NO, BM]" if part == "r" else "",
            dtype="acc",
        )  # fmt: skip
    reads = ("b_ar", "b_ai", "b_tr", "b_ti")
    for buffer, line in (
        ("b_hr", "b_hr = b_ar * b_tr + b_ai * b_ti"), ("b_hi", "b_hi = b_ai * b_tr - b_ar * b_ti"),
    ):  # fmt: skip
        builder.map(buffer, STEP, COLUMNS, line, dtype="io", reads=reads)
    for place, part in enumerate("ri"):
        left = Operand(f"b_f0{part}", f"tl.trans(b_f0{part})", SQUARE, transposed=True)
        builder.dot(
            "b_yr", STEP, COLUMNS, left, Operand(f"b_h{part}", f"b_h{part}", COLUMNS),
            into="b_yr" if place else "", name=f"product back {part}",
            note="" if place else "[NO, NO] @ [NO, BM]: both sequences",
        )  # fmt: skip
    finish_row(builder, found, sides, ROW, gate_gradient=gate_gradient, region=STEP, shape=COLUMNS)
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in read
    ]
    tensors.extend((*_TABLES, _mid(mid)))
    if found.skip is not None:
        name = found.skip.name
        tensors.append(TensorArgument(f"u_{name}", ("c",), "tensor", "[C]", given=name))
    tensors.extend(TensorArgument(name, (), "io", "[B, C, T]", written=True) for name in results)
    return _kernel(builder, tuple(tensors), ("B", "T"))


def _load_tables(builder: GraphBuilder, factor: str = "f0") -> None:
    """The factor and the twiddles of a program's columns, once a program."""
    for part, start in (("r", ""), ("i", " + NO * NO")):
        builder.load(
            f"b_{factor}{part}", SETUP, SQUARE, dtype="io", tensor=factor,
            address=f"{factor}{start} + o_f",
            lines=("o_f = r_o[:, None] * NO + r_o[None, :]",) if part == "r" else (),
            note="the DFT of NO points" if part == "r" else "",
        )  # fmt: skip
    for part, start in (("r", ""), ("i", " + NO * M")):
        builder.load(
            f"b_t{part}", SETUP, COLUMNS, tensor="twiddle0", address=f"twiddle0{start} + o_w",
            lines=("o_w = r_o[:, None] * M + o_m[None, :]",) if part == "r" else (),
        )  # fmt: skip


def _spread(builder: GraphBuilder, mid: str, row: str) -> None:
    """b_x [NO, BM] times the factor and the twiddles, into the workspace."""
    factor = "g0" if mid == "wmid" else "f0"
    for part in "ri":
        builder.dot(
            f"b_a{part}", STEP, COLUMNS, Operand(f"b_{factor}{part}", f"b_{factor}{part}", SQUARE),
            Operand("b_x", "b_x", COLUMNS), name=f"product {part}",
            note="[NO, NO] @ [NO, BM]" if part == "r" else "",
        )  # fmt: skip
    reads = ("b_ar", "b_ai", "b_tr", "b_ti")
    lines = ("b_hr = b_ar * b_tr - b_ai * b_ti", "b_hi = b_ai * b_tr + b_ar * b_ti")
    for part, line, start in zip("ri", lines, ("", " + M"), strict=True):
        builder.map(f"b_h{part}", STEP, COLUMNS, line, dtype="io", reads=reads)
        pointer = (
            (f"p_{mid} = {mid} + tl.cast({row}, tl.int64) * (2 * NO * M)",) if part == "r" else ()
        )
        builder.store(
            STEP, COLUMNS, *pointer, f"b_h{part}", name=f"store {mid} {part}",
            reads=(f"b_h{part}",), tensor=mid, address=f"p_{mid}{start} + o_q",
        )  # fmt: skip


def _pointer(name: str, strided: bool) -> str:
    place = f"i_ba * stride_{name}_b + i_c * stride_{name}_c" if strided else "(i_ba * C + i_c) * T"
    return f"p_{name}_a = {name} + {place}"


def _mid(name: str, *, written: bool = False) -> TensorArgument:
    return TensorArgument(name, (), "io", "[C, NP, NO, 2, M]", written=written)


def _kernel(
    builder: GraphBuilder, tensors: tuple[TensorArgument, ...], scalars: tuple[str, ...]
) -> Kernel:
    return Kernel(
        builder.kernel, "", tensors, (*scalars, "C", "NP", "RPS"), CONSTANTS, builder.build(), (),
        (_LOOP,), specialized=("T",) if "T" in scalars else (),
    )  # fmt: skip
