"""Candidates of the chunked form: chunks, columns of v, warps and stages, held against a budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.features import MIN_TILE, Features, features_of
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.chunked import chunk_kernels
from attnc.codegen.plan import Rejected, Request
from attnc.codegen.planning.candidate import (
    Found,
    is_wide,
    pass_plan,
    printer_for,
    refuse,
    state_too_large,
    tile_dims,
)
from attnc.codegen.planning.channel_passes import inside_pass
from attnc.codegen.planning.ranked_passes import least_channels


def chunk_features(request: Request, algebra: Algebra) -> Features:
    """The features of the state, in tiles as the chunked form takes them."""
    head_dim = request.dims[0]
    # one step of 16 columns is right at any width; longer products want the device's least
    narrowest = MIN_TILE if head_dim <= MIN_TILE else request.device.min_columns
    # the factors of a tile of monomials are all in registers: the fewer, the longer the chunk
    return features_of(algebra.state, head_dim, narrowest=narrowest, widest=64)


def gradient_features(request: Request, algebra: Algebra) -> Features:
    """The same as the passes of a chunked backward take them."""
    least = least_channels(request)
    # a tile of monomials has its factors and their gradients beside it, all in registers
    widest = max(64, least)
    dim = request.dims[0]
    return features_of(algebra.state, dim, narrowest=least, widest=widest, channels=least)


def pass_kernels(
    request: Request, algebra: Algebra, features: Features, printer: Printer
) -> tuple[Kernel, ...]:
    """The kernels of the passes, in order."""
    return chunk_kernels(
        request.variant,
        algebra,
        features,
        request.dims,
        printer,
        stateful=request.stateful,
        min_columns=request.device.min_columns,
    )


def chunk_tiles(algebra: Algebra, rows: int) -> dict[str, int]:
    """The tiles of a chunk of so many rows; of a sum, those of its pairs and its lag too."""
    if algebra.folded is None:
        return {"BC": rows}
    return {"BC": rows, **lag_of(algebra, rows), "BT": rows, "BS": min(rows, 64)}


def lag_of(algebra: Algebra, rows: int) -> dict[str, int]:
    """How many chunks of so many rows a key of a sum lags behind; nothing for one weight.

    It enters the state as many chunks after its own as the folded term's mask reaches back.
    """
    return {} if algebra.folded is None else {"LAG": ceil(max(algebra.distance - 1, 0) / rows)}


def chunk_passes(request: Request, algebra: Algebra) -> tuple[Found, tuple[Rejected, ...]]:
    """Every candidate that fits: its passes, its place among equals; and those that do not."""
    features = chunk_features(request, algebra)
    too_large = state_too_large(request, features)
    if too_large:
        return [], (Rejected("any chunk", too_large),)
    tile_k, tile_v = tile_dims(request)
    kernels = pass_kernels(request, algebra, features, printer_for(request))
    *before, state, output = (k for k in kernels if k.name != "scan")
    scans = [kernel for kernel in kernels if kernel.name == "scan"]
    chunk = request.variant.chunk
    sizes = (64, 32, 16) if algebra.by_channel else (64, 128, 32, 16)
    chunks: tuple[int, ...] = (chunk,) if isinstance(chunk, int) else sizes
    least = request.device.min_columns
    splits = [width for width in (256, 128, 64, 32, 16) if least <= width <= tile_v]
    if is_wide(request):
        # monomials multiply what stands in registers, and what there is to compile
        short = (32, 16) if features.direct else (16,)
        chunks = chunks if isinstance(chunk, int) else short
        splits = [width for width in splits if width <= 64]
    found: Found = []
    rejected: list[Rejected] = []
    scanned = [pass_plan(request, scan, {"BC": 0, "BE": 512}, 4, 1) for scan in scans]
    inside = {
        rows: [inside_pass(request, kernel, rows, tile_k) for kernel in before] for rows in chunks
    }
    for rows, width, warps, stages in product(chunks, splits[:3], (8, 4), (3, 2, 1)):
        if rows < 16 * warps and not (warps == 4 and rows <= 64):
            continue
        tiles = {**chunk_tiles(algebra, rows), "BK": tile_k, "BV": width}
        first, last = (
            pass_plan(request, kernel, _used(kernel, tiles), warps, stages)
            for kernel in (state, output)
        )
        refused = (refuse(request, step) for step in (last, first, *inside[rows]))
        reason = next((reason for reason in refused if reason), "")
        if reason:
            rejected.append(Rejected(str(last), reason))
            continue
        middle = [replace(step, tiles=(("BC", rows), ("BE", 512))) for step in scanned]
        found.append(((*inside[rows], first, *middle, last), (-rows, -width, warps, stages)))
    return found, tuple(rejected)


def _used(kernel: Kernel, tiles: dict[str, int]) -> dict[str, int]:
    """Those of the tiles that a kernel has."""
    return {name: size for name, size in tiles.items() if name in kernel.constants}
