"""How far eager torch errs in a gradient of few numbers, and a draw that zeros would not pass.

Eager torch may be lucky in all of a few numbers (one, of a convolution's skip of one channel), and
the reference itself may come out near 0. Both are mended by other draws of the gradient that comes
in: the largest error counts, and the gradient is held where the reference stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import Tensor

# so many numbers that the largest error among them is no luck: a kernel that errs as they do passes
# three times that bar but once in a million
_TELLING = 32
_TINY = 1e-30

Incoming = TypeVar("Incoming")


@dataclass(frozen=True, slots=True)
class Drawn(Generic[Incoming]):
    """A gradient that comes in, the reference's gradients by name, and how far eager torch errs."""

    incoming: Incoming
    ref: Mapping[str, Tensor]
    eager: Mapping[str, float]


def draws_of(numbers: int, least: int) -> int:
    """How many draws of so many numbers each tell how far eager torch errs: `least` or more."""
    return max(least, -(-_TELLING // numbers))


def telling(
    draw: Callable[[], Drawn[Incoming]],
    wanted: Callable[[Mapping[str, Tensor]], Mapping[str, int]],
) -> Drawn[Incoming]:
    """The draw whose `wanted` gradients stand out most, with the largest errors of all draws.

    `wanted` names the gradients of few numbers and how many draws each takes; it is asked once.
    """
    first = draw()
    few = wanted(first.ref)
    drawn = [first, *(draw() for _ in range(1, max(few.values(), default=1)))]
    largest = {
        label: max(item.eager[label] for item in drawn[:count]) for label, count in few.items()
    }

    def stands_out(item: Drawn[Incoming]) -> float:
        sizes = (
            float(item.ref[label].abs().max()) / max(largest[label], _TINY) for label in few
        )  # fmt: skip
        return min(sizes, default=0.0)

    best = max(drawn, key=stands_out)
    largest = {label: max(error, best.eager[label]) for label, error in largest.items()}
    return replace(best, eager={**best.eager, **largest})
