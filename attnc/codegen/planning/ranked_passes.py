"""The candidates of one pass of a backward: legal ones in order of prediction, and the refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnc.codegen.features import MIN_TILE, power_of_two
from attnc.codegen.kernel import Kernel
from attnc.codegen.plan import PassPlan, Rejected, Request
from attnc.codegen.planning.candidate import is_wide, pass_plan, refuse
from attnc.codegen.planning.rank import rank_us

# tiles, warps, stages
Candidates = Iterator[tuple[dict[str, int], int, int]]


@dataclass(frozen=True, slots=True)
class RankedPass:
    """The legal candidates of one pass, the fastest by prediction first, and the refused ones."""

    steps: tuple[PassPlan, ...]
    rejected: tuple[Rejected, ...]


def rank_pass(request: Request, kernel: Kernel, candidates: Candidates) -> RankedPass:
    """A pass with each of its candidates."""
    legal: list[tuple[float, tuple[int, ...], PassPlan]] = []
    rejected: list[Rejected] = []
    for tiles, warps, stages in candidates:
        step = pass_plan(request, kernel, tiles, warps, stages)
        reason = refuse(request, step)
        if reason:
            rejected.append(Rejected(str(step), reason))
        else:
            order = (*(-size for size in tiles.values()), warps, stages)
            legal.append((rank_us(step, request), order, step))
    legal.sort(key=lambda item: item[:2])
    return RankedPass(tuple(step for _, _, step in legal), tuple(rejected))


def fixed_pass(request: Request, kernel: Kernel, tiles: dict[str, int]) -> RankedPass:
    """A pass that has one candidate."""
    return RankedPass((pass_plan(request, kernel, tiles, 4, 1),), ())


def least_channels(request: Request) -> int:
    """The narrowest tile of channels: gradients are products over K's too, so both are padded.

    fp32 tiles have too few rows for the warp-group products that go wrong on narrow operands.
    """
    return MIN_TILE if is_wide(request) else max(MIN_TILE, request.device.min_columns)


def whole_heads(request: Request) -> tuple[int, int]:
    """BK and BV: whole heads, in powers of two."""
    least = least_channels(request)
    head_dim, value_dim = request.dims
    return max(least, power_of_two(head_dim)), max(least, power_of_two(value_dim))
