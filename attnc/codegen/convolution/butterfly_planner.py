"""Request -> the passes of the form by learned factors, whose sizes the declared tensors give."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.convolution.butterfly import dgate_kernel, dvalue_kernel, forward_kernel
from attnc.codegen.convolution.factor_sums import dinner_kernel, douter_kernel, dspectrum_kernel
from attnc.codegen.convolution.fft_work import LAID_OUT, factors_of, tensors_moved
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import DTYPES, PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import refuse
from attnc.codegen.planning.cost import estimate
from attnc.dsl.butterfly import factors_for
from attnc.dsl.convolution import Convolution, Filter

# more points than 4 warps hold
_WIDE = 4096


def butterfly_passes(
    request: Request, fields: frozenset[str] | None
) -> tuple[list[tuple[PassPlan, ...]], list[Rejected]]:
    """The passes at the workload's factors; `fields` are those of a backward.

    Raises:
        PlanError: sequences of the workload are longer than any block.
    """
    assert isinstance(request.variant, Convolution)
    n1, n2 = request.workload.factors or factors_for(request.workload.tk)
    tiles = factors_of(n1, n2)
    steps = tuple(
        _pass_plan(request, kernel, tiles, _warps(kernel, n1 * n2))
        for kernel in _kernels(request.variant.filter, fields)
    )
    reasons = [reason for step in steps if (reason := refuse(request, step))]
    if reasons:
        return [], [Rejected("; ".join(map(str, steps)), reasons[0])]
    return [steps], []


def _kernels(found: Filter, fields: frozenset[str] | None) -> list[Kernel]:
    if fields is None:
        return [forward_kernel(found)]
    kernels = [dvalue_kernel(found, gate_gradient="pregate" in fields)]
    if "postgate" in fields:
        kernels.append(dgate_kernel(found))
    if fields & {"weight", "skip"}:
        kernels.append(dspectrum_kernel(found, skip="skip" in fields))
    if "outer" in fields:
        kernels.append(douter_kernel(found))
    if "inner" in fields:
        kernels.append(dinner_kernel(found))
    return kernels


def _warps(kernel: Kernel, points: int) -> int:
    """The compiler's figures for sm_90: two transforms and their sum spill least on 8 warps."""
    two = kernel.name == "butterfly_dspectrum" and points == _WIDE
    return 8 if points > _WIDE or two else 4


def _pass_plan(request: Request, kernel: Kernel, tiles: Mapping[str, int], warps: int) -> PassPlan:
    cost = estimate(
        kernel, tiles, io=request.dtype, num_warps=warps, num_stages=1, device=request.device,
        work=_work(request, kernel, tiles), precision=request.precision,
    )  # fmt: skip
    return PassPlan(kernel, tuple(tiles.items()), warps, 1, cost)


def _work(request: Request, kernel: Kernel, tiles: Mapping[str, int]) -> tuple[float, float]:
    """(HBM bytes, FLOPs) of one launch."""
    work, item = request.workload, DTYPES[request.dtype]
    n1, n2, half = tiles["N1"], tiles["N2"], tiles["NH"]
    rows = work.batch * work.hq
    # two stages of a real row, there and back; sums go one way twice, and fold instead
    flops = 2 * (4.0 * n1 * half * n2 + 8.0 * n1 * n2 * n2)
    nbytes = tensors_moved(kernel) * rows * work.tk * item
    points = work.hq * n1 * n2
    nbytes += points * (2 * item + (LAID_OUT if kernel.name in {"butterfly", "dbutterfly"} else 0))
    return float(nbytes), flops * rows
