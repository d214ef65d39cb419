"""A kernel of the portable backend as one for sm_90: the same graph, tensors as descriptors."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.kernel import Kernel

_LAYOUTS = {
    **dict.fromkeys(("q", "dq", "dq_sum"), "[B, HQ, TQ, K]"),
    **dict.fromkeys(("k", "dk"), "[B, HKV, TK, K]"),
    **dict.fromkeys(("v", "dv"), "[B, HKV, TK, V]"),
    **dict.fromkeys(("o", "do"), "[B, HQ, TQ, V]"),
}
# the rows of the tiles that each kernel copies, by tensor: BW are one consumer's. What a score
# reads, and the o that a backward reads once, keep their pointers and strides
_ROWS = {
    "online": {"q": "BW", "k": "BS", "v": "BS", "o": "BW"},
    "dq": {"q": "BW", "k": "BS", "v": "BS", "do": "BW", "dq": "BW"},
    "dkv": {"q": "BT", "k": "BW", "v": "BW", "do": "BT", "dk": "BW", "dv": "BW"},
}
# a fused pass adds BW rows by BP columns at a time, a group's part of a tile of dq
_ROWS["dqkv"] = {**_ROWS["dkv"], "dq_sum": "BW"}


def described(kernel: Kernel, *, persistent: bool = False) -> Kernel:
    """The kernel with what its copies move as descriptors, which carry their shapes and strides.

    A `persistent` one counts the places that its programs share, and asks for B.
    """
    tensors, rows = [], _ROWS[kernel.name]
    for tensor in kernel.tensors:
        if tensor.name in rows:
            layout = _LAYOUTS[tensor.name]
            box = (rows[tensor.name], "BK" if layout.endswith("K]") else "BV")
            box = ("BW", "BP") if tensor.name == "dq_sum" else box
            layout = f"{layout} in tiles [{', '.join(box)}]"
            tensor = replace(tensor, axes=(), layout=layout, box=box)
        tensors.append(tensor)
    scalars = ("B", *kernel.scalars) if persistent else kernel.scalars
    # its sizes are constants of the module
    return replace(kernel, tensors=tuple(tensors), scalars=scalars, constants=())
