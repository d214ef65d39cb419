"""mbarrier: a count of arrivals and of bytes, whose phases end one after the other.

Source: the PTX ISA 8.5, "Parallel Synchronization and Communication Instructions: mbarrier".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attnc.autotune.gluon_interpreter.agents import current, waited
from attnc.autotune.gluon_interpreter.clock import Clock
from attnc.autotune.gluon_interpreter.elements import int64
from attnc.autotune.gluon_interpreter.faults import GluonFault
from attnc.autotune.gluon_interpreter.shared import Allocation, Shared


class MBarrierLayout:
    """How a barrier lies: a name here."""


@dataclass(eq=False, slots=True)
class Barrier:
    """`phase` counts those that ended; `awaited` arrivals and `bytes_due` end the next one."""

    name: str
    key: str
    count: int
    awaited: int
    phase: int = 0
    bytes_due: int = 0
    known: Clock = field(default_factory=Clock)
    arriving: Clock = field(default_factory=Clock)

    def arrive(self, count: int, clock: Clock) -> None:
        if count > self.awaited:
            raise GluonFault(
                f"{self.name} gets {count} arrivals in a phase that awaits {self.awaited}"
            )
        self.arriving.join(clock)
        self.awaited -= count
        self._end_phase()

    def expect(self, nbytes: int) -> None:
        self.bytes_due += nbytes

    def land(self, nbytes: int, clock: Clock) -> None:
        """A copy of so many bytes has arrived, which was asked for at a clock."""
        if nbytes > self.bytes_due:
            raise GluonFault(
                f"{nbytes} bytes land at {self.name}, which expects {self.bytes_due} more"
            )
        self.arriving.join(clock)
        self.bytes_due -= nbytes
        self._end_phase()

    def _end_phase(self) -> None:
        if self.awaited or self.bytes_due:
            return
        self.phase += 1
        self.awaited = self.count
        self.known.join(self.arriving)
        self.known[self.key] = self.phase
        self.arriving = Clock()


# the barriers of an allocation by the bytes at which they lie
_BARRIERS: dict[tuple[int, int], tuple[Allocation, Barrier]] = {}


def barrier_at(place: Shared) -> Barrier:
    """The barrier that was made at a place of shared memory.

    Raises: GluonFault where none was.
    """
    found = _BARRIERS.get((id(place.allocation), place.extent()[0]))
    if found is None:
        raise GluonFault(f"{place.what} is used before mbarrier.init")
    return found[1]


def forget_barriers() -> None:
    """Those of a program that ended."""
    _BARRIERS.clear()


def init(place: Shared, count: int) -> None:
    """Make a barrier whose phases await so many arrivals."""
    if place.dtype is not int64 or place.data.size != 1:
        raise GluonFault(f"{place.what} is no barrier: one has 64 bits")
    key = (id(place.allocation), place.extent()[0])
    _BARRIERS[key] = (place.allocation, Barrier(place.what, f"{place.what} {key}", count, count))


def expect(place: Shared, nbytes: int, pred: Any = True) -> None:
    """Arrive, and let the phase last until so many bytes have landed too."""
    if not pred:
        return
    agent = current()
    agent.program.pause()
    barrier = barrier_at(place)
    barrier.expect(int(nbytes))
    barrier.arrive(1, agent.release())


def arrive(place: Shared, *, count: int = 1, pred: Any = True) -> None:
    """Arrive so many times: whoever waits for the phase comes after all that was done here."""
    if not pred:
        return
    agent = current()
    agent.program.pause()
    barrier_at(place).arrive(count, agent.release())


def wait(place: Shared, phase: Any, pred: Any = True, deps: tuple[object, ...] = ()) -> None:
    """Go on once the latest phase that ended has this parity."""
    if not pred:
        return
    agent = current()
    barrier = barrier_at(place)
    parity = int(phase)
    if parity not in (0, 1):
        raise GluonFault(f"{barrier.name} is waited for with a parity of {parity}")
    agent.program.pause(
        lambda: barrier.phase & 1 != parity, waited(f"parity {parity} of {barrier.name}")
    )
    agent.clock.join(barrier.known)


def invalidate(place: Shared) -> None:
    """Give a barrier's memory back."""
    barrier_at(place)
    _BARRIERS.pop((id(place.allocation), place.extent()[0]))
