"""Predicted microseconds of a convolution's plans: what its forms and their tiles are ranked by."""

from __future__ import annotations

from attnc.codegen.plan import DTYPES, PassPlan, Request

# how far products stay below the device's rate: 128 x 64 and pieces as an H100 measured them
# (benchmarks/NOTES.md), the others predicted. A Toeplitz block is gathered from its taps before it
# is multiplied; a transform's products follow one another, and those of fewer than 64 rows go
# without a warp group's instruction, for N1 = 64 the last stage's.
_GATHERED = 6.0
_SLOWER = ((128, 4.5), (64, 4.8), (0, 8.0))
# a loop over pieces carries a spectrum in registers, and loads tokens and spectra again
_PIECES = 1.2
# the inner transforms of three passes, from whole plans that an H100 timed at 128 x 256, 128 x 1024
# and 64 x 4096 points: small factors fill no product
_INNER_SLOWER = ((64, 4.3), (32, 15.0), (0, 31.0))
# what a pass over strided columns gets of the memory's rate, and of the products': predicted
_STRIDED, _STRIDED_PRODUCTS = 0.65, 4.8


def form_us(steps: tuple[PassPlan, ...], request: Request) -> float:
    """Predicted microseconds of a plan, by which forms and factors are compared."""
    return sum(step_us(step, request) for step in steps)


def step_us(step: PassPlan, request: Request) -> float:
    """The larger of memory's time and the products', at the rate that such products get."""
    device, work, tile = request.device, request.workload, step.tile
    moved = step.cost.hbm_bytes / (device.tbps * 1e6)
    rate = device.tflops * 1e6 * (1.0 if DTYPES[request.dtype] == 2 else 0.12)
    if "BM" in tile and "NO" in tile:
        products = step.cost.flops / rate * _STRIDED_PRODUCTS
        return max(moved / _STRIDED, products) + 1.0
    if "NO" in tile:
        slow = next(slow for least, slow in _INNER_SLOWER if tile["N1"] >= least)
        rows = tile["N1"] * tile["N2"]
    elif "N1" in tile:
        slow = next(slow for least, slow in _SLOWER if tile["N1"] >= least)
        slow *= _PIECES if work.tk > tile["NH"] * tile["N2"] else 1.0
        rows = 2 * tile["NH"] * tile["N2"]
    else:
        slow = _GATHERED * (1 + 64 / tile["BR"] if "BR" in tile else 1.0)
        rows = tile.get("BR", 1) * tile.get("BT", work.tk)
    programs = work.hq * -(-work.batch * work.tk // rows)
    idle = max(1.0, device.sms / programs)
    return max(moved, step.cost.flops / rate * slow * idle) + 1.0
