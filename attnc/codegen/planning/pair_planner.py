"""Candidates of the forms over pairs, `online` and `parallel`: rows and keys, warps and stages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import MIN_TILE
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.attend import attend_kernel
from attnc.codegen.kernels.block_lists import list_kernel, listed_at_once
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import (
    Found,
    is_wide,
    pass_plan,
    printer_for,
    refuse,
    tile_dims,
)
from attnc.codegen.planning.channel_passes import gates_pass
from attnc.codegen.tile_lists import tile_lists


def listing_pass(request: Request, algebra: Algebra) -> tuple[PassPlan, ...]:
    """The pass that lists the tiles of rows, where data decides what they see."""
    lists = tile_lists(algebra.mask, of_rows=True)
    if lists is None:
        return ()
    kernel = list_kernel(request.variant, algebra, lists)
    return (pass_plan(request, kernel, {"BN": listed_at_once(algebra.mask, lists)}, 4, 1),)


def pair_kernel(request: Request, algebra: Algebra, printer: Printer) -> Kernel:
    """The kernel of the pass."""
    return attend_kernel(
        request.variant, algebra, request.dims, printer, min_columns=request.device.min_columns,
        out="io" if request.result == request.dtype else request.result,
    )  # fmt: skip


def pair_passes(request: Request, algebra: Algebra) -> tuple[Found, tuple[Rejected, ...]]:
    """The legal candidates, each with what orders them, and the rejected ones."""
    kernel = pair_kernel(request, algebra, printer_for(request))
    tile_k, tile_v = tile_dims(request)
    found: Found = []
    rejected: list[Rejected] = []
    before: tuple[PassPlan, ...] = ()
    if algebra.decay in {"gated", "channel"}:
        before = (gates_pass(request, algebra, printer_for(request)),)
    lists = tile_lists(algebra.mask, of_rows=True)
    before = (*before, *listing_pass(request, algebra))
    for rows, keys, warps, stages in _tiles(request, algebra):
        if lists is not None and not lists.takes(rows, keys):
            continue
        tiles = {"BT": rows, "BS": keys, "BK": tile_k, "BV": tile_v}
        step = pass_plan(request, kernel, tiles, warps, stages)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
        else:
            found.append(((*before, step), (-rows, -keys, warps, stages)))
    return found, tuple(rejected)


def _tiles(request: Request, algebra: Algebra) -> Iterator[tuple[int, int, int, int]]:
    if algebra.by_channel:
        # every pair has a decay a channel, and all of them are held at once
        yield from ((MIN_TILE, MIN_TILE, warps, 1) for warps in (4, 8, 16))
        return
    # no program walks 16 keys at a time but one whose blocks are as small
    small = any(table.size == MIN_TILE for table in request.variant.mask_form.blocks)
    streamed = (MIN_TILE,) if small else (128, 64, 32)
    for rows, keys, warps, stages in product((128, 64, 32, 16), streamed, (8, 4), (3, 2, 1)):
        if is_wide(request) and (rows > 16 * warps or keys > 32):
            continue
        if (rows >= 16 * warps and rows >= keys // 2) or (rows < 64 and warps == 4 and keys <= 64):
            yield rows, keys, warps, stages
