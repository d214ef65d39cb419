"""What a warp group knows of the others: up to when, of each, it is sure to come after them."""

from __future__ import annotations


class Clock(dict[str, int]):
    """A vector clock: a time for each warp group and for each barrier, 0 for one not met."""

    def __missing__(self, key: str) -> int:
        return 0

    def join(self, other: Clock) -> None:
        """Know what the other knows too."""
        for key, time in other.items():
            if time > self[key]:
                self[key] = time
