"""The work of a convolution's passes: bytes through HBM and floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, Plan, Request
from attnc.dsl.convolution import Convolution


def taps_of(request: Request | Plan) -> int:
    """The taps that a plan is made for: the workload's, or one a token, as the mask shows them."""
    assert isinstance(request.variant, Convolution)
    low, high = request.variant.filter.offsets(request.workload.taps or request.workload.tk)
    return max(1, high - low + 1)


def filter_work(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> tuple[float, float]:
    """(HBM bytes, FLOPs) of one launch: each tensor of tokens once, each block of taps once."""
    work = request.workload
    elements = work.batch * work.hq * work.tk
    moved = sum(tensor.axes[:1] == ("b",) or (tensor.written and tensor.dtype == "io")
                for tensor in kernel.tensors)  # fmt: skip
    taps = work.hq * taps_of(request) * 4
    if kernel.name == "dtaps":
        size = tiles["BM"] * tiles["BE"]
        reach = -(-taps_of(request) // size) * size
        share = _share(reach, work.tk)
    else:
        reach = min(taps_of(request), work.tk) + tiles["BT"]
        share = 1.0
    return float(elements * moved * DTYPES[request.dtype] + taps), 2.0 * elements * reach * share


def _share(reach: int, tokens: int) -> float:
    """The share of tokens that have a partner so many tokens apart, on average."""
    seen = min(reach, tokens)
    return max(0.5, (seen - seen * seen / (2 * tokens)) / reach) if reach else 1.0
