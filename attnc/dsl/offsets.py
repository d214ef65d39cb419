"""Which offsets i - j the taps of a filter stand at. Copied as it is into wheels."""

from __future__ import annotations


def tap_offsets(lowest: int | None, highest: int | None, taps: int) -> tuple[int, int]:
    """The first and the last offset that a filter of so many taps weighs, within its bounds.

    Without a lowest one the taps are centred on offset 0.
    """
    first = -(taps // 2) if lowest is None else lowest
    last = first + taps - 1
    return first, last if highest is None else min(last, highest)
