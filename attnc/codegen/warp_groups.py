"""How a program's warps share the registers of a multiprocessor: consumer groups and a producer.

Source: FlashAttention-3 (arXiv 2407.08608), section 3.1: registers go from the producer to the
warp groups that multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

# rows of a product of one warp group
GROUP_ROWS = 64
# what a producer's warp may use: it computes coordinates and nothing else
_PRODUCER = 24
_GROUP = 128
_REGISTER_FILE = 65536
_MOST = 240


@dataclass(frozen=True, slots=True)
class GroupRegisters:
    """Registers a thread: of every thread at the start, then of consumers and of the producer."""

    every: int
    consumer: int
    producer: int


def group_registers(consumers: int) -> GroupRegisters:
    """The shares of `consumers` groups of four warps and of a producer, in multiples of eight.

    A producer's single warp takes a whole group's share: registers move between groups.
    """
    every = _REGISTER_FILE // (_GROUP * (consumers + 1)) // 8 * 8
    consumer = (_REGISTER_FILE // _GROUP - _PRODUCER) // consumers // 8 * 8
    return GroupRegisters(every, min(consumer, _MOST), _PRODUCER)
