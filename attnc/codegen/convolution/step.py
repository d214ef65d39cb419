"""The kernel of one token: taps times the inputs that a ring keeps, the newest put into it.

    z = w[0] u[n] + sum over d > 0 of w[d] ring[(n - d) mod R]       R = the farthest offset + 1

A program owns its rows of the ring: it reads no slot that another writes, nor the one that it
writes, whose input is in registers. Positions n come from lengths on the device.
"""

from __future__ import annotations

from attnc.codegen.convolution.sides import gate_name
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.convolution import Filter

_ROWS, _PAST = ("BB",), ("BB", "BD")


def step_kernel(found: Filter) -> Kernel:
    """o of one token [B, 1, C] of a filter whose lowest offset is 0 or more; the ring in place."""
    before, after = gate_name(found, "pregate"), gate_name(found, "postgate")
    weight = f"u_{found.weight.name}"
    builder = GraphBuilder("filter_step")
    _load(builder, SETUP, "b_u", "v", "u of the new token")
    if before:
        _load(builder, SETUP, "b_a", before)
        builder.map("b_u", SETUP, _ROWS, "b_u = b_u * b_a", name="gate", reads=("b_u", "b_a"))
    builder.map("b_x", SETUP, _ROWS, "b_x = b_u", name="round", dtype="io", reads=("b_u",))
    builder.fold("b_z", SETUP, _ROWS, "b_z = tl.zeros([BB], ACC)", note="accumulator")
    builder.load(
        "b_w", STEP, ("BD",), tensor=weight, guard="o_d < TAPS", note="[BD]",
        address=f"p_{weight} + o_d * stride_{weight}_d",
        lines=("o_d = i_d + tl.arange(0, BD)",),
    )  # fmt: skip
    builder.load(
        "b_p", STEP, _PAST, tensor="ring", address="p_ring[:, None] + o_p", guard="m_p",
        note="inputs so far, [BB, BD]",
        lines=(
            "o_n = LOW + o_d[None, :]",
            "o_p = (i_n[:, None] + R - o_n) % R",
            "m_p = m_b[:, None] & (o_n >= 1) & (o_n <= i_n[:, None]) & (o_d < TAPS)[None, :]",
        ),
    )  # fmt: skip
    builder.fold("b_z", STEP, _ROWS, "b_z += tl.sum(b_p * b_w[None, :], 1)",
                 reads=("b_z", "b_p", "b_w"))  # fmt: skip
    if found.lowest == 0:
        builder.load("b_f", FINISH, (), tensor=weight, address=f"p_{weight}", note="offset 0",
                     name="load first tap")  # fmt: skip
        builder.map("b_z", FINISH, _ROWS, "b_z = b_z + b_f * b_x.to(ACC)", name="first tap",
                    reads=("b_z", "b_f", "b_x"))  # fmt: skip
    if found.skip is not None:
        skip = f"u_{found.skip.name}"
        builder.load("b_d", FINISH, (), tensor=skip, address=f"p_{skip}")
        builder.map("b_z", FINISH, _ROWS, "b_z = b_z + b_d * b_x.to(ACC)", name="skip",
                    reads=("b_z", "b_d", "b_x"))  # fmt: skip
    if after:
        _load(builder, FINISH, "b_g", after)
        builder.map("b_z", FINISH, _ROWS, "b_z = b_z * b_g", name="after", reads=("b_z", "b_g"))
    builder.store(FINISH, _ROWS, "b_z.to(o.dtype.element_ty)", name="store o", reads=("b_z",),
                  tensor="o", address="o + i_b * C + i_c", guard="m_b")  # fmt: skip
    builder.store(FINISH, _ROWS, "b_x", name="store ring", reads=("b_x",), tensor="ring",
                  address="p_ring + i_n % R", guard="m_b")  # fmt: skip
    return Kernel(
        "filter_step", "", _tensors(found, before, after, weight), ("B", "C", "R", "LOW", "TAPS"),
        ("BB", "BD"), builder.build(), (), (KeyLoop("0", "TAPS", True, "taps, BD at a time"),),
    )  # fmt: skip


def _tensors(found: Filter, before: str, after: str, weight: str) -> tuple[TensorArgument, ...]:
    tensors = [
        TensorArgument(name, ("b", "c"), "io", "[B, C, 1]", given=name.removeprefix("u_"))
        for name in ("v", before, after)
        if name
    ]
    given = found.weight.name
    tensors.append(TensorArgument(weight, ("c", "d"), "tensor", "[C, taps]", given=given))
    if found.skip is not None:
        name = found.skip.name
        tensors.append(TensorArgument(f"u_{name}", ("c",), "tensor", "[C]", given=name))
    tensors.append(TensorArgument("ring", (), "io", "[B, C, R]", written=True))
    tensors.append(TensorArgument("lengths", (), "i32", "[B]"))
    tensors.append(TensorArgument("o", (), "io", "[B, 1, C]", written=True))
    return tuple(tensors)


def _load(builder: GraphBuilder, region: str, buffer: str, name: str, note: str = "") -> None:
    builder.load(buffer, region, _ROWS, tensor=name, address=f"p_{name}", guard="m_b", note=note)
