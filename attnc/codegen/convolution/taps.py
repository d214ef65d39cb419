"""The kernel that sums a filter's gradient, without atomics.

    dw[M * BE + e] = sum over b, k of dz[k + M * BE] u[k - e]

so the taps of one channel are a matrix [e, M], a product of u's Toeplitz matrix [e, k] with strided
windows of dz [k, M]. A program sums the sequences of its split of the batch; each partial sum has
one writer, and the launcher adds the splits in a fixed order.
"""

from __future__ import annotations

from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Operand
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

_LEFT, _WINDOWS = ("BE", "BK"), ("BM", "BK")
_SETUP = (
    "# tokens k whose partners k + M * BE and k - e lie in the sequence",
    "first = FIRST + i_m * BM",
    "lo = tl.maximum(0, (1 - first - BM) * BE) // BK * BK",
    "hi = tl.minimum(T + BE - 1, T - first * BE)",
)


def dtaps_kernel(found: Filter) -> Kernel:
    """Partial sums [S, C, offsets] of the gradient of the taps."""
    before = "" if found.pregate is None else f"u_{found.pregate.name}"
    after = "" if found.postgate is None else f"u_{found.postgate.name}"
    builder = GraphBuilder("dtaps")
    builder.fold("b_dw", SETUP, ("BE", "BM"), "b_dw = tl.zeros([BE, BM], ACC)", note="accumulator")
    _load(builder, "b_u", "v", _LEFT, "s", before, "u[k - e]", "o_k[None, :] - r_e[:, None]")
    windows = "o_k[None, :] + o_m[:, None] * BE"
    _load(builder, "b_dz", "do", _WINDOWS, "t", after, "dz[k + M * BE]", windows)
    left = Operand("b_u", "b_u", _LEFT)
    right = Operand("b_dz", "tl.trans(b_dz)", ("BK", "BM"), transposed=True)
    builder.dot(
        "b_dw", STEP, ("BE", "BM"), left, right, name="taps", into="b_dw", carried=True,
        note="[BE, BK] @ [BK, BM]",
    )  # fmt: skip
    builder.store(
        FINISH, ("BE", "BM"), "b_dw", name="store taps", reads=("b_dw",), tensor="taps",
        address="p_taps + r_m[None, :] * BE + r_e[:, None]", note="[BE, BM]",
    )  # fmt: skip
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, T]", given=name.removeprefix("u_"))
        for name in ("v", before, "do", after)
        if name
    ]
    tensors.append(TensorArgument("taps", (), "acc", "[S, C, NM * BM * BE]", written=True))
    loop = KeyLoop("lo", "hi", True, "tokens of one sequence")
    return Kernel(
        "dtaps", "", tuple(tensors), ("B", "T", "C", "FIRST", "NM", "BPS"), ("BM", "BE", "BK"),
        builder.build(), _SETUP, (loop,),
        outer="for i_b in range(i_s * BPS, tl.minimum(B, i_s * BPS + BPS)):",
    )  # fmt: skip


def _load(
    builder: GraphBuilder, buffer: str, name: str, shape: tuple[str, str], at: str, gate: str,
    note: str, index: str,
) -> None:  # fmt: skip
    counts = ("o_k = i_k + tl.arange(0, BK)",) if at == "s" else ()
    bounds = f"m_{at} = (o_{at} >= 0) & (o_{at} < T)"

    def address(tensor: str) -> str:
        return f"p_{tensor} + tl.cast(i_b, tl.int64) * stride_{tensor}_b + o_{at}"

    builder.load(
        buffer, STEP, shape, dtype="io", tensor=name, address=address(name), guard=f"m_{at}",
        note=f"[{', '.join(shape)}]: {note}", lines=(*counts, f"o_{at} = {index}", bounds),
    )  # fmt: skip
    if not gate:
        return
    held = "b_a" if at == "s" else "b_g"
    builder.load(held, STEP, shape, dtype="io", tensor=gate, address=address(gate), guard=f"m_{at}")
    builder.map(
        buffer, STEP, shape, f"{buffer} = {buffer}.to(ACC) * {held}.to(ACC)", name=f"gate {buffer}",
        dtype="io", reads=(buffer, held),
    )  # fmt: skip
