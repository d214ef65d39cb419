"""The work of passes by transforms: bytes through HBM, floating-point operations, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from attnc.codegen.convolution.algebra import THREE_PASS, TOEPLITZ
from attnc.codegen.convolution.work import taps_of
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, Request
from attnc.dsl.convolution import Convolution

# root mean square of one rounding, of numbers whose logarithms are spread evenly
_ROUNDING = {"bf16": 1.7e-3, "fp16": 2.1e-4, "fp32": 1e-7, "fp64": 1e-16}
# operands, factors, those of the spectrum, and the output; of one program 3, 4, 1 and 1
_ROUNDINGS = {TOEPLITZ: 2, THREE_PASS: 6 + 6 + 7 + 1}
# the launcher's transform of the filter: taps laid out, transformed, put in order; bytes a point
LAID_OUT = 4 * 3 + 8 * 3


def factors_of(n1: int, n2: int) -> dict[str, int]:
    """The tiles of a transform of n1 * n2 points."""
    return {"N1": n1, "N2": n2, "NH": n1 // 2}


def pieces_of(request: Request, size: int) -> range:
    """The pieces of the filter that join two blocks of so many tokens at the workload."""
    assert isinstance(request.variant, Convolution)
    low, high = request.variant.filter.offsets(taps_of(request))
    blocks = -(-request.workload.tk // size)
    if blocks == 1:
        return range(1)
    first, last = max(low // size, 1 - blocks), min((high - 1) // size + 1, blocks - 1)
    return range(first, max(first, last) + 1)


def tensors_moved(kernel: Kernel) -> int:
    """How many tensors [B, C, T] a kernel reads and writes."""
    return sum(
        tensor.axes[:1] == ("b",) or (tensor.written and tensor.dtype == "io")
        for tensor in kernel.tensors
    )


def transform_work(
    request: Request, kernel: Kernel, tiles: Mapping[str, int]
) -> tuple[float, float]:
    """(HBM bytes, FLOPs) of one launch, the making of the filter's spectrum with it."""
    work, item = request.workload, DTYPES[request.dtype]
    n1, n2, half = tiles["N1"], tiles["N2"], tiles["NH"]
    size = half * n2
    pieces = pieces_of(request, size)
    blocks = -(-work.tk // size)
    # pairs of blocks that a piece joins, over a channel's sequences, two to a transform
    joined = sum(blocks - abs(piece) for piece in pieces) * work.batch / 2
    transform = 8.0 * n1 * n2 * (half + n2)
    moved = tensors_moved(kernel)
    points = work.hq * len(pieces) * n1 * n2
    if kernel.name == "dspectrum":
        # u and dz once a piece, and a partial sum
        nbytes = moved * joined * 2 * size * work.hq * item + points * (8 + LAID_OUT)
        return float(nbytes), 2 * joined * transform * work.hq
    nbytes = moved * work.batch * work.hq * work.tk * item + points * 2 * item
    if kernel.name != "dgate":
        nbytes += points * LAID_OUT
    rows = work.batch * blocks / 2
    return float(nbytes), (joined + rows) * transform * work.hq


def error_of(form: str, dtype: str) -> float:
    """The expected error of the output, as a share of its root mean square.

    A transform rounds three operands, its four factors and the spectrum, and the output; a product
    with Toeplitz blocks rounds taps and the output; three passes round their workspaces too, and
    the filter goes the way of the tokens. A test holds the figures against fp64.
    """
    return _ROUNDING[dtype] * sqrt(_ROUNDINGS.get(form, 9))
