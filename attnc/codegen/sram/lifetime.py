"""Where buffers go in SRAM: Triton's allocator, which reuses what is no longer read.

Source: Gergov 1999, Algorithms for Compile-Time Memory Optimization
(https://dl.acm.org/doi/10.5555/314500.315082), with first-fit colouring of what still collides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ALIGNMENT = 16
_FOREVER = 1 << 60


@dataclass(eq=False, slots=True)
class Span:
    """`nbytes` of SRAM from `start` until `end`, counted in steps of the program."""

    nbytes: int
    start: int
    end: int
    offset: int = 0

    def meets(self, other: Span) -> bool:
        """Whether both are live at some moment, in the same bytes."""
        return (
            self.start < other.end
            and other.start < self.end
            and self.offset < other.top
            and other.offset < self.top
        )

    @property
    def top(self) -> int:
        """The byte after the last one."""
        return self.offset + self.nbytes


def place(spans: Sequence[Span]) -> int:
    """Give every span its offset; returns the bytes that all of them take together."""
    order = sorted((span for span in spans if span.nbytes), key=lambda span: -span.nbytes)
    _first_offsets(order)
    while clashes := _clashes(order):
        _move_apart(order, clashes)
    return max((span.top for span in order), default=0)


def _first_offsets(order: Sequence[Span]) -> None:
    """Stack spans into the lowest free slot that their whole life fits, the largest first."""
    slots = [(0, 0, _FOREVER)]
    left = list(order)
    while left:
        slots.sort(key=lambda slot: slot[0])
        offset, start, end = slots.pop(0)
        span = next((s for s in left if _fits(s, (start, end), slots)), None)
        if span is None:
            continue
        left.remove(span)
        span.offset = _aligned(offset)
        slots.append((span.top, max(start, span.start), min(end, span.end)))
        if start < span.start:
            slots.append((offset, start, span.end))
        if span.end < end:
            slots.append((offset, span.start, end))


def _fits(span: Span, life: tuple[int, int], slots: Sequence[tuple[int, int, int]]) -> bool:
    if not (span.start < life[1] and life[0] < span.end):
        return False
    return not any(span.start < end and start < span.end for _, start, end in slots)


def _clashes(order: Sequence[Span]) -> dict[int, list[int]]:
    found = {
        n: [m for m, other in enumerate(order) if m != n and span.meets(other)]
        for n, span in enumerate(order)
    }
    return {n: others for n, others in found.items() if others}


def _move_apart(order: Sequence[Span], clashes: dict[int, list[int]]) -> None:
    """Colour the spans that collide; all but the first colour go above their neighbours."""
    colours = [0] + [-1] * (len(order) - 1)
    for n in range(len(order)):
        taken = {colours[m] for m in clashes.get(n, ())}
        colours[n] = next(colour for colour in range(len(order)) if colour not in taken)
    for n, span in enumerate(order):
        if colours[n]:
            span.offset = _aligned(max((order[m].top for m in clashes.get(n, ())), default=0))


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
