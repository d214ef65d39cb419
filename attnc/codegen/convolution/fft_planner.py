"""Request -> the passes of the form by transforms, one choice of factors for all of a plan."""

from __future__ import annotations

from attnc.codegen.convolution.fft import dgate_kernel, dvalue_kernel, forward_kernel
from attnc.codegen.convolution.fft_work import factors_of, transform_work
from attnc.codegen.convolution.spectrum import dspectrum_kernel
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import refuse
from attnc.codegen.planning.cost import estimate
from attnc.dsl.convolution import Convolution, Filter

# N1, N2, warps: both factors feed a product, whose inner side is 16 at least, N1 / 2 too. The
# compiler's figures for sm_90: two factors beyond 128 x 64 hold more than the registers do.
_HALF_TYPES = (
    (128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (32, 16, 4),
    # not measured yet: more warps hide what one program a multiprocessor waits for; 128 x 64 spills
    (128, 64, 16), (64, 32, 8),
)  # fmt: skip
# without a warp group's instruction, more points than these spill tens of kilobytes (cuda:80)
_WARP_GROUPS, _POINTS_WITHOUT = (90, 100), 2048
# each fp32 product is split in three: larger ones spill kilobytes, and take a minute to compile
_FULL_TYPES = ((32, 64, 8), (32, 32, 4), (32, 16, 4))


def transform_passes(
    request: Request, fields: frozenset[str] | None
) -> tuple[list[tuple[PassPlan, ...]], list[Rejected]]:
    """The passes for each choice of factors that fits; `fields` are those of a backward."""
    assert isinstance(request.variant, Convolution)
    wide = request.dtype in {"fp32", "fp64"}
    found: list[tuple[PassPlan, ...]] = []
    rejected: list[Rejected] = []
    grouped = request.device.capability in _WARP_GROUPS
    for n1, n2, warps in _FULL_TYPES if wide else _HALF_TYPES:
        if not grouped and n1 * n2 > _POINTS_WITHOUT:
            continue
        tiles = factors_of(n1, n2)
        pieces = request.workload.tk > tiles["NH"] * n2
        steps = tuple(
            _pass_plan(request, kernel, tiles, _warps(kernel, tiles, warps))
            for kernel in _kernels(request.variant.filter, fields, pieces=pieces)
        )
        reasons = [reason for step in steps if (reason := refuse(request, step))]
        if reasons:
            rejected.append(Rejected("; ".join(map(str, steps)), reasons[0]))
        else:
            found.append(steps)
    return found, rejected


def _kernels(found: Filter, fields: frozenset[str] | None, *, pieces: bool) -> list[Kernel]:
    if fields is None:
        return [forward_kernel(found, pieces=pieces)]
    kernels = [dvalue_kernel(found, pieces=pieces, gate_gradient="pregate" in fields)]
    if "postgate" in fields:
        kernels.append(dgate_kernel(found, pieces=pieces))
    if fields & {"weight", "skip"}:
        kernels.append(dspectrum_kernel(found))
    return kernels


def _warps(kernel: Kernel, tiles: dict[str, int], warps: int) -> int:
    """What a loop carries lies in registers beside a transform: twice the warps where 4 held it."""
    carried = bool(kernel.loops) and tiles["N1"] * tiles["N2"] >= 2048
    return max(8, warps) if carried else warps


def _pass_plan(request: Request, kernel: Kernel, tiles: dict[str, int], warps: int) -> PassPlan:
    cost = estimate(
        kernel, tiles, io=request.dtype, num_warps=warps, num_stages=1, device=request.device,
        work=transform_work(request, kernel, tiles), precision=request.precision,
    )  # fmt: skip
    return PassPlan(kernel, tuple(tiles.items()), warps, 1, cost)
