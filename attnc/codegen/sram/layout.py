"""How Triton spreads a tile over registers, lanes and warps: what a conversion has to move.

A layout is linear over bits: each bit of a register's, a lane's or a warp's number steps to another
element, and steps combine by exclusive or. Source: Zhou et al. 2025, Linear Layouts
(arXiv 2505.23819).
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 32
_VECTOR_BYTES = 16

Step = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The (row, column) steps of a tile's registers, lanes and warps, lowest bit first."""

    shape: tuple[int, int]
    registers: tuple[Step, ...]
    lanes: tuple[Step, ...]
    warps: tuple[Step, ...]

    @property
    def transposed(self) -> Layout:
        """The layout of the tile's transpose, with every element where it was."""
        rows, columns = self.shape
        sides = (self.registers, self.lanes, self.warps)
        return Layout((columns, rows), *(tuple((c, r) for r, c in side) for side in sides))

    def places(self, steps: tuple[Step, ...]) -> tuple[int, ...]:
        """Steps as bits of an element's place in the tile, row-major."""
        return tuple(row * self.shape[1] + column for row, column in steps)


def coalesced(shape: tuple[int, int], item_bytes: int, num_warps: int) -> Layout:
    """A row-major tile as it comes from global memory: up to 16 bytes a thread, rows to warps."""
    rows, columns = shape
    share = max(1, rows * columns // (LANES * num_warps))
    vector = min(max(1, _VECTOR_BYTES // item_bytes), share, columns)
    across = min(LANES, columns // vector)
    warps_across = min(num_warps, max(1, columns // (vector * across)))
    column, row = _Axis(1, columns), _Axis(0, rows)
    registers = column.take(vector)
    lanes = column.take(across) + row.take(LANES // across)
    warps = column.take(warps_across) + row.take(num_warps // warps_across)
    return Layout(shape, registers + column.rest() + row.rest(), lanes, warps)


def accumulator(shape: tuple[int, int], version: int, grid: tuple[int, int]) -> Layout:
    """What a matrix product leaves, `grid` warps over (rows, columns).

    Version 2 is `mma.sync`, tiles of 16 by 8; version 3 is `wgmma`, as wide as a warp's columns.
    """
    row, column = _Axis(0, shape[0]), _Axis(1, shape[1])
    pair, quad, eight = column.take(2), column.take(4), row.take(8)
    registers = pair + row.take(2)
    if version == 3:
        registers += column.take(max(1, min(256, shape[1] // grid[1]) // 8))
    warps = column.take(grid[1]) + row.take(grid[0])
    registers = tuple(step for step in registers if step != (0, 0))
    return Layout(shape, registers + column.rest() + row.rest(), quad + eight, warps)


def left_operand(shape: tuple[int, int], item_bytes: int, warps_down: int) -> Layout:
    """The left matrix [M, K] of a product as the instruction wants it in registers."""
    row, column = _Axis(0, shape[0]), _Axis(1, shape[1])
    pack, quad, eight = column.take(max(1, 4 // item_bytes)), column.take(4), row.take(8)
    registers = pack + row.take(2) + column.rest()
    warps = row.take(warps_down)
    return Layout(shape, registers + row.rest(), quad + eight, warps)


def right_operand(shape: tuple[int, int], item_bytes: int, warps_across: int) -> Layout:
    """The right matrix [K, N] of a product as the instruction wants it in registers."""
    row, column = _Axis(0, shape[0]), _Axis(1, shape[1])
    pack, quad, eight = row.take(max(1, 4 // item_bytes)), row.take(4), column.take(8)
    registers = pack + row.rest()
    warps = column.take(warps_across)
    return Layout(shape, registers + column.rest(), quad + eight, warps)


class _Axis:
    """One axis of a tile, handed out bit by bit; past its end, steps lead nowhere."""

    def __init__(self, axis: int, size: int) -> None:
        self._axis, self._size, self._next = axis, size, 1

    def take(self, count: int) -> tuple[Step, ...]:
        """The steps of the next `count` places, a power of two."""
        steps: list[Step] = []
        for _ in range(count.bit_length() - 1):
            steps.append(self._step() if self._next < self._size else (0, 0))
            self._next *= 2
        return tuple(steps)

    def rest(self) -> tuple[Step, ...]:
        """The steps that nobody took."""
        steps: list[Step] = []
        while self._next < self._size:
            steps.append(self._step())
            self._next *= 2
        return tuple(steps)

    def _step(self) -> Step:
        return (self._next, 0) if self._axis == 0 else (0, self._next)
