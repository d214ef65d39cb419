"""Shared memory: views of allocations, and who read and wrote which bytes of them when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnc.autotune.gluon_interpreter.agents import Agent, current
from attnc.autotune.gluon_interpreter.elements import Array, Element
from attnc.autotune.gluon_interpreter.faults import GluonFault, assigned_name, kernel_line
from attnc.autotune.gluon_interpreter.tiles import Tile


@dataclass(eq=False, slots=True)
class Access:
    """Bytes that someone reads or writes, until a time of its owner's; open while none is set.

    The owner is a warp group, or the barrier that a copy lands at. What a warp group writes is
    `fenced` at a time of its own: who knows of an earlier one alone may not count on it.
    """

    begin: int
    end: int
    writes: bool
    owner: str
    time: int | None
    who: str
    line: int
    fenced: bool = True
    fenced_at: int = 0

    def before(self, agent: Agent) -> bool:
        """Whether what the agent does now is sure to come after it."""
        return self.time is not None and agent.clock[self.owner] >= self.time

    def told(self) -> str:
        doing = "written" if self.writes else "read"
        return f"{doing} by {self.who} at line {self.line}"


@dataclass(eq=False, slots=True)
class Allocation:
    """One buffer of a program's, NaN or a large number until it is written."""

    name: str
    data: Array
    element: Element
    accesses: list[Access] = field(default_factory=list)

    def enter(self, access: Access, agent: Agent) -> None:
        """Hold an access against those before it, and remember it.

        Raises: GluonFault where one that overlaps it may come before it or after it.
        """
        kept = []
        for other in self.accesses:
            if other.end <= access.begin or access.end <= other.begin:
                kept.append(other)
                continue
            ordered = other.before(agent)
            if (access.writes or other.writes) and not ordered:
                raise GluonFault(
                    f"a race on {self.name}: {access.told()}, and {other.told()}; "
                    "no barrier orders them"
                )
            inside = access.begin <= other.begin and other.end <= access.end
            replaced = access.writes or (not other.writes and other.owner == access.owner)
            if not (ordered and inside and replaced):
                kept.append(other)
        self.accesses = [*kept, access]


class Shared:
    """A view of an allocation: what `index`, `slice`, `reshape` and `permute` leave of it."""

    __slots__ = ("allocation", "data")

    def __init__(self, allocation: Allocation, data: Array) -> None:
        self.allocation = allocation
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> Element:
        return self.allocation.element

    @property
    def what(self) -> str:
        """The buffer by its name, with its place in the allocation."""
        begin, _ = self.extent()
        own = self.data.nbytes
        place = f"[{begin // own}]" if own and begin % own == 0 else ""
        return f"{self.allocation.name}{place}"

    @property
    def nbytes(self) -> int:
        """Bytes on the card: bfloat16 takes two there."""
        return self.data.size * self.dtype.bits // 8

    def extent(self) -> tuple[int, int]:
        """The bytes of the allocation that it spans."""
        begin = _address(self.data) - _address(self.allocation.data)
        sides = zip(self.data.shape, self.data.strides, strict=True)
        return begin, begin + self.data.itemsize + sum((n - 1) * step for n, step in sides)

    def index(self, place: Any) -> Shared:
        number = int(place)
        if not 0 <= number < self.shape[0]:
            raise GluonFault(f"{self.allocation.name} has {self.shape[0]} places, none {number}")
        return Shared(self.allocation, self.data[number])

    def slice(self, start: Any, length: int, dim: int = 0) -> Shared:
        key = [slice(None)] * self.data.ndim
        key[dim] = slice(int(start), int(start) + length)
        if not 0 <= int(start) <= self.shape[dim] - length:
            raise GluonFault(f"a slice of {self.allocation.name} passes its end")
        return Shared(self.allocation, self.data[tuple(key)])

    def reshape(self, shape: list[int]) -> Shared:
        view = self.data.reshape(shape)
        if not np.shares_memory(view, self.data):
            raise GluonFault(f"{self.allocation.name} cannot be reshaped where it lies")
        return Shared(self.allocation, view)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.allocation, self.data.transpose(order))

    def load(self, layout: object = None) -> Tile:
        """Read it into registers, at once."""
        agent = current()
        self.touch(agent, writes=False)
        return Tile(self.data.copy(), self.dtype)

    def store(self, tile: Tile) -> None:
        """Write registers into it, at once; the copy engine sees them after a fence."""
        if tile.shape != self.shape or tile.dtype is not self.dtype:
            raise GluonFault(
                f"{self.what} is {list(self.shape)} of {self.dtype}, "
                f"and the tile {list(tile.shape)} of {tile.dtype}"
            )
        agent = current()
        access = self.touch(agent, writes=True)
        access.fenced = False
        agent.unfenced.append(access)
        self.data[...] = tile.data

    def touch(self, agent: Agent, *, writes: bool) -> Access:
        """An access of the agent's own instructions, over as soon as it is made."""
        begin, end = self.extent()
        time = agent.clock[agent.name]
        access = Access(begin, end, writes, agent.name, time, agent.name, kernel_line())
        self.allocation.enter(access, agent)
        return access

    def read_later(self, agent: Agent, who: str) -> Access:
        """An access of the copy engine or the tensor cores for the agent, open until it waits.

        Raises: GluonFault where what lies there was written by a warp group and not fenced.
        """
        begin, end = self.extent()
        for other in self.allocation.accesses:
            overlaps = other.begin < end and begin < other.end
            seen = other.fenced and agent.clock[other.owner] >= other.fenced_at
            if overlaps and other.writes and not seen:
                raise GluonFault(
                    f"{self.what} was {other.told()} and not fenced: {who} of line "
                    f"{kernel_line()} may read what was there before"
                )
        whose = f"{who} of {agent.name}"
        access = Access(begin, end, False, agent.name, None, whose, kernel_line())
        self.allocation.enter(access, agent)
        return access


def _address(data: Array) -> int:
    return int(data.__array_interface__["data"][0])


def allocate(element: Element, shape: list[int]) -> Shared:
    """A new buffer of the program's, poisoned."""
    data = np.full(shape, np.nan if element.floating else -1, dtype=element.held)
    return Shared(Allocation(assigned_name(), data, element), data)
