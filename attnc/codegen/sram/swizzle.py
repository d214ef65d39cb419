"""The scratch that moving a tile between two layouts takes: Triton's swizzled conversion.

A conversion writes the tile to SRAM and reads it back. Registers that both layouts step through
alike need no exchange between threads: those beyond what one access spans make rounds, and one
round's share is all that is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from attnc.codegen.sram.layout import Layout

_BANK_BITS = 32 * 32
_ACCESS_BITS = 128

Places = Sequence[int]


class _Access(NamedTuple):
    """An instruction: the lanes whose elements lie in one row, and those that give addresses."""

    row: tuple[int, ...]
    address: tuple[int, ...]


_PLAIN = _Access((), (0, 1, 2))
_MATRIX = _Access((0, 1), (2, 3, 4))
_MATRIX_TURNED = _Access((2, 3, 4), (0, 1))


@dataclass(frozen=True, slots=True)
class _Side:
    registers: tuple[int, ...]
    lanes: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout) -> _Side:
        registers = tuple(place for place in layout.places(layout.registers) if place)
        return cls(registers, layout.places(layout.lanes))


class _Plan(NamedTuple):
    """One way to lay the tile out: its conflicts, and how many times its rounds halve it."""

    conflicts: int
    halvings: int


@cache  # candidates convert the same few tiles over and over
def scratch_bytes(
    source: Layout, target: Layout, item_bytes: int, *, matrix_stores: bool = False
) -> int:
    """Bytes of SRAM that the conversion holds; `matrix_stores` where the GPU has stmatrix."""
    bits = 8 * item_bytes
    rows, columns = source.shape
    space = _log2(rows * columns)
    write, read = _Side.of(source), _Side.of(target)
    plans = list(_wide_plans(write, read, bits, space, matrix_stores))
    best = min(plans, key=lambda plan: (plan.conflicts, -plan.halvings), default=None)
    if best is None:
        best = _narrow_plan(write, read, bits, space)
    return rows * columns * item_bytes >> best.halvings


def _wide_plans(
    write: _Side, read: _Side, bits: int, space: int, matrix_stores: bool
) -> Iterator[_Plan]:
    """Plans whose every access moves 128 bits a thread, by plain or by matrix instructions."""
    matrix = [_MATRIX] * (bits <= 32) + [_MATRIX_TURNED] * (bits == 16)
    for store in (_PLAIN, *(matrix if matrix_stores else ())):
        for load in (_PLAIN, *matrix):
            span = _shared_span(write, read, store, load, bits, space)
            tiles = (_row_of(store, write, span or ()), _row_of(load, read, span or ()))
            if span is None or tiles[0] is None or tiles[1] is None:
                continue
            kept = min(len(store.row + store.address), len(load.row + load.address)) - 3
            yield _lay_out(write, read, bits, space, span, tiles[0], tiles[1], kept)


def _shared_span(
    write: _Side, read: _Side, store: _Access, load: _Access, bits: int, space: int
) -> list[int] | None:
    """The places that one access of both sides covers together, if they can agree on any."""
    whole = _log2(_ACCESS_BITS // bits)
    more, less = (write, store), (read, load)
    if len(store.row) > len(load.row):
        more, less = less, more
    in_registers = whole - len(less[1].row)
    common = _intersection(more[0].registers, less[0].registers, space)
    if in_registers < 0 or len(common) < in_registers:
        return None
    lanes = [less[0].lanes[lane] for lane in less[1].row]
    paired = [more[0].lanes[lane] for lane in more[1].row]
    if 0 in lanes or 0 in paired:
        return None
    extra = len(lanes) - len(paired)
    if any(lane not in more[0].registers for lane in lanes[:extra]) or lanes[extra:] != paired:
        return None
    return [*common[:in_registers], *lanes]


def _row_of(access: _Access, side: _Side, span: Places) -> list[int] | None:
    """The places that eight threads of an access touch at once, beside the span."""
    free = [place for place in side.registers if place not in span]
    wanted = 3 - len(access.address)
    if len(free) < wanted:
        return None
    return [*free[:wanted], *(side.lanes[lane] for lane in access.address)]


def _narrow_plan(write: _Side, read: _Side, bits: int, space: int) -> _Plan:
    """The fallback: plain accesses as wide as the registers of both sides allow."""
    span = _common_span(write, read, bits, space)
    tiles = []
    for side in (write, read):
        matched = 0
        while matched < min(len(span), len(side.registers)) and (
            side.registers[matched] == span[matched]
        ):
            matched += 1
        words = max(1, (1 << matched) * bits // 32)
        lanes = side.lanes[: len(side.lanes) - _log2(words)]
        tiles.append([place for place in lanes if place not in span])
    return _lay_out(write, read, bits, space, span, tiles[0], tiles[1], 0)


def _common_span(write: _Side, read: _Side, bits: int, space: int) -> list[int]:
    """Registers in common, filled up to a word, then those that are lanes of the other side."""
    span = _intersection(write.registers, read.registers, space)[: _log2(_ACCESS_BITS // bits)]
    first, second = write, read
    if (1 << len(span)) * bits < 32:
        sides = {side: _fill(side, span, _log2(32 // bits)) for side in (write, read)}
        gains = [
            _extra(side.registers, sides[side], other.lanes, bits)
            for side, other in ((write, read), (read, write))
        ]
        if gains[1] > gains[0]:
            first, second = read, write
        span = sides[first]
    return span + _extra(first.registers, span, second.lanes, bits)


def _fill(side: _Side, span: list[int], size: int) -> list[int]:
    rest = [place for place in side.registers if place not in span]
    return span + rest[: max(0, size - len(span))]


def _extra(registers: Places, span: Places, lanes: Places, bits: int) -> list[int]:
    found = [place for place in registers if place not in span and place in lanes]
    return found[: _log2(_ACCESS_BITS // max(bits, 32))]


def _lay_out(
    write: _Side,
    read: _Side,
    bits: int,
    space: int,
    span: Places,
    written: Places,
    read_back: Places,
    kept: int,
) -> _Plan:
    """Banks and segments of the tile in SRAM; rounds are what both sides hold in registers."""
    width = (1 << len(span)) * bits
    in_banks = min(_log2(max(1, _BANK_BITS // width)), space - len(span))
    size = space - in_banks - len(span)
    segments = _segments([*span, *written], [*span, *read_back], space, size)
    shared = set(write.registers) & set(read.registers)
    rounds = [place for place in segments if place in shared][kept:]
    held = [place for place in segments if place not in rounds]
    conflicts = sum(
        (1 << len(_intersection(held, tile, space))) - 1 for tile in (written, read_back)
    )
    return _Plan(conflicts, len(rounds))


def _segments(written: Places, read_back: Places, space: int, size: int) -> list[int]:
    """Which places choose the segment: none that an access spans, or sums of one of each side."""
    writes, reads = set(written) - {0}, set(read_back) - {0}
    free = [1 << bit for bit in range(space) if 1 << bit not in writes | reads]
    if len(free) >= size:
        return free[:size]
    few, many = sorted((sorted(writes - reads), sorted(reads - writes)), key=len)
    clashing = min(max(0, size - len(few) - len(free)), len(few))
    sums = [few[n] ^ many[n] for n in range(clashing, len(few))]
    return [*free, *sums, *few[:clashing], *many[:clashing]][:size]


def _intersection(first: Places, second: Places, space: int) -> list[int]:
    """A basis of the places that combinations of both reach."""
    if all(place and place & (place - 1) == 0 for place in (*first, *second)):
        return [place for place in first if place in second]
    return _null_space([*_null_space(first, space), *_null_space(second, space)], space)


def _null_space(vectors: Places, space: int) -> list[int]:
    rows = _reduced(vectors, space)
    found = []
    for bit in sorted(set(range(space)) - set(rows)):
        found.append((1 << bit) | sum(1 << lead for lead, row in rows.items() if row >> bit & 1))
    return found


def _reduced(vectors: Places, space: int) -> dict[int, int]:
    """Row-reduced over two elements: the rows by their leading bit."""
    rows = [vector for vector in vectors if vector]
    reduced: dict[int, int] = {}
    for bit in range(space):
        pivot = next((row for row in rows if row >> bit & 1), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows = [row ^ pivot if row >> bit & 1 else row for row in rows]
        reduced = {b: row ^ pivot if row >> bit & 1 else row for b, row in reduced.items()}
        reduced[bit] = pivot
    return reduced


def _log2(size: int) -> int:
    return size.bit_length() - 1
