"""A kernel of the portable backend as one for sm_90: the same graph, tensors as descriptors."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.kernel import Kernel

# rows of a copy are one consumer's, BW; what the score reads keeps its pointers and strides
_BOXES = {
    "q": (("BW", "BK"), "[B, HQ, TQ, K] in tiles [BW, BK]"),
    "k": (("BS", "BK"), "[B, HKV, TK, K] in tiles [BS, BK]"),
    "v": (("BS", "BV"), "[B, HKV, TK, V] in tiles [BS, BV]"),
    "o": (("BW", "BV"), "[B, HQ, TQ, V] in tiles [BW, BV]"),
}


def described(kernel: Kernel, *, persistent: bool = False) -> Kernel:
    """The kernel with q, k, v and o as descriptors, which carry their shapes and strides.

    A `persistent` one counts the places that its programs share, and asks for B.
    """
    tensors = []
    for tensor in kernel.tensors:
        if tensor.name in _BOXES:
            box, layout = _BOXES[tensor.name]
            tensor = replace(tensor, axes=(), layout=layout, box=box)
        tensors.append(tensor)
    scalars = ("B", *kernel.scalars) if persistent else kernel.scalars
    # its sizes are constants of the module
    return replace(kernel, tensors=tuple(tensors), scalars=scalars, constants=())
