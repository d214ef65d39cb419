"""Request -> the passes of a transform that no program holds: outer stage, inner ones, back."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.convolution.inner_passes import (
    filter_inner_kernel,
    inner_kernel,
    inner_sums_kernel,
)
from attnc.codegen.convolution.outer_passes import (
    collect_kernel,
    filter_spread_kernel,
    spread_kernel,
)
from attnc.codegen.convolution.sides import dgate_sides, dvalue_sides, forward_sides
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import refuse
from attnc.codegen.planning.cost import estimate
from attnc.dsl.convolution import Convolution, Filter

# N1, N2, warps of the inner transforms; in 16 bits 64 x 64 points fit 4 warps without a spill. Not
# 64 x 32: a warp group's right operand of 32 columns, 64 rows of it, is what Triton 3.6 miscompiles
_HALF_TYPES = ((64, 64, 4), (32, 64, 4), (32, 32, 4), (16, 16, 4))
_FULL_TYPES = ((32, 64, 8), (32, 32, 4), (32, 16, 4), (16, 16, 4))
# a product's inner side is 16 at least, and a column of so many points stays in registers
_LEAST, _MOST = 16, 128
_WARPS = 4


def three_passes(
    request: Request, fields: frozenset[str] | None
) -> tuple[list[tuple[PassPlan, ...]], list[Rejected]]:
    """The passes for each inner transform that fits; `fields` are those of a backward."""
    assert isinstance(request.variant, Convolution)
    wide = request.dtype in {"fp32", "fp64"}
    found: list[tuple[PassPlan, ...]] = []
    rejected: list[Rejected] = []
    points = 2 << max(0, request.workload.tk - 1).bit_length()
    for n1, n2, warps in _FULL_TYPES if wide else _HALF_TYPES:
        outer = max(_LEAST, points // (n1 * n2))
        named = f"{outer} x {n1} x {n2} points"
        if outer > _MOST:
            rejected.append(Rejected(named, f"an outer stage of more than {_MOST} points"))
            continue
        steps = tuple(
            _pass_plan(request, kernel, outer, (n1, n2), warps)
            for kernel in _kernels(request.variant.filter, fields)
        )
        reasons = [reason for step in steps if (reason := refuse(request, step))]
        if reasons:
            rejected.append(Rejected(named, reasons[0]))
        else:
            found.append(steps)
    return found, rejected


def _kernels(found: Filter, fields: frozenset[str] | None) -> list[Kernel]:
    kernels = [filter_spread_kernel(found), filter_inner_kernel()]
    if fields is None:
        sides = forward_sides(found, "collect")
        return [
            *kernels,
            spread_kernel(sides, "spread", "umid"),
            inner_kernel("inner", "umid", mirrored=False),
            collect_kernel(found, sides, "collect", "umid"),
        ]
    sides = dvalue_sides(found, "dcollect")
    kernels.append(spread_kernel(sides, "dspread", "zmid"))
    sums = bool(fields & {"weight", "skip"})
    if sums or "postgate" in fields:
        kernels.append(spread_kernel(forward_sides(found, "spread"), "spread", "umid"))
    if sums:
        kernels.append(inner_sums_kernel())
    kernels.append(inner_kernel("conjugate", "zmid", mirrored=True))
    gated = "pregate" in fields
    kernels.append(collect_kernel(found, sides, "dcollect", "zmid", gate_gradient=gated))
    if "postgate" in fields:
        kernels.append(inner_kernel("inner", "umid", mirrored=False))
        sides = dgate_sides(found, "gate_collect")
        kernels.append(collect_kernel(found, sides, "gate_collect", "umid"))
    return kernels


def _pass_plan(
    request: Request, kernel: Kernel, outer: int, inner: tuple[int, int], warps: int
) -> PassPlan:
    n1, n2 = inner
    if "BM" in kernel.constants:
        tiles = {"NO": outer, "M": n1 * n2, "BM": 128 if outer <= 32 else 64}
        count = _WARPS if outer < _MOST else 2 * _WARPS
    else:
        tiles = {"NO": outer, "N1": n1, "N2": n2, "NH": n1}
        # a sum stands in registers beside two transforms
        count = 8 if kernel.loops and n1 * n2 >= 2048 else warps
    cost = estimate(
        kernel, tiles, io=request.dtype, num_warps=count, num_stages=1, device=request.device,
        work=_work(request, kernel, tiles, outer * n1 * n2), precision=request.precision,
    )  # fmt: skip
    return PassPlan(kernel, tuple(tiles.items()), count, 1, cost)


def _work(
    request: Request, kernel: Kernel, tiles: Mapping[str, int], points: int
) -> tuple[float, float]:
    """(HBM bytes, FLOPs) of one launch: tensors of tokens, workspaces and spectra, each once."""
    work, item = request.workload, DTYPES[request.dtype]
    of_filter = kernel.name.startswith("filter")
    rows = work.hq * (1 if of_filter else -(-work.batch // 2))
    complex_bytes = rows * points * 2 * item
    spectrum = work.hq * points * 2 * item
    if "BM" in tiles:
        # two real products; zero rows of a sequence are where the other one stands
        flops = 4.0 * tiles["NO"] * points * rows
        tokens = work.hq * (work.taps or work.tk) * 4 if of_filter else 0
        moved = sum(tensor.axes[:1] == ("b",) or tensor.name in {"o", "dv", "dpre", "dpost"}
                    for tensor in kernel.tensors)  # fmt: skip
        tokens += moved * work.batch * work.hq * work.tk * item
        return float(tokens + complex_bytes), flops
    one_way = 8.0 * (tiles["N1"] + tiles["N2"]) * points * rows
    if of_filter:
        return float(2 * spectrum), one_way
    if kernel.loops:
        return float(2 * complex_bytes + 2 * spectrum), 2 * one_way
    return float(2 * complex_bytes + spectrum), 2 * one_way
