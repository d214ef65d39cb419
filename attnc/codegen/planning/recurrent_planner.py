"""Candidates of the recurrent pass: columns of v and warps a program, wide while programs last."""

from __future__ import annotations

from itertools import product
from math import ceil

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import Features, features_of, power_of_two
from attnc.codegen.kernels.recurrent import recurrent_kernel
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import LEAST_COLUMNS, pass_plan, refuse, state_too_large

# fewer columns than this a row and loads of the state fill no sector of 32 bytes
_COLUMNS = (64, 32, LEAST_COLUMNS)
# words of the state a thread: fewer leave the memory idle, more leave few programs resident
_WORDS = 32


def recurrent_features(request: Request, algebra: Algebra) -> Features:
    """Features in tiles as narrow as they come: no product asks for wider ones."""
    return features_of(algebra, request.dims[0])


def recurrent_passes(
    request: Request, algebra: Algebra, printer: Printer
) -> tuple[list[tuple[tuple[PassPlan, ...], tuple[int, ...]]], tuple[Rejected, ...]]:
    """The legal candidates, each with what orders them, and the rejected ones."""
    features = recurrent_features(request, algebra)
    too_large = state_too_large(request, features, columns=LEAST_COLUMNS)
    if too_large:
        return [], (Rejected("any columns", too_large),)
    kernel = recurrent_kernel(
        request.variant, algebra, features, request.dims, printer, decode=request.decode
    )
    work = request.workload
    heads = work.batch * (work.hq if algebra.heads_differ else work.hkv)
    value_dim = power_of_two(request.dims[1])
    widths = [width for width in _COLUMNS if width <= value_dim]
    if request.decode and algebra.normalize == "sum":
        # the normaliser's state is updated in place, so no second program may read it
        widths = [value_dim]
    token = {"T": 1, "G": work.batch * work.hq // heads} if request.decode else {}
    found: list[tuple[tuple[PassPlan, ...], tuple[int, ...]]] = []
    rejected: list[Rejected] = []
    for width, warps in product(widths, (1, 2, 4, 8, 16)):
        tiles = {"BV": width, **token}
        step = pass_plan(request, kernel, tiles, warps, 1)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
            continue
        programs = heads * ceil(request.dims[1] / width)
        idle = max(0, 2 * request.device.sms - programs)
        words = features.padded_count * width // (warps * request.device.warp_size)
        found.append(((step,), (idle, abs(words - _WORDS), -width)))
    return found, tuple(rejected)
