"""The sizes of a learned transform: N = N1 * N2 points, half of them padding.

Both factors feed matrix products, whose inner side is 16 at least, N1 / 2 too; a program holds all
points in registers. Copied as it is into wheels.
"""

from __future__ import annotations

from attnc.errors import PlanError

OUTER_SIZES, INNER_SIZES = (32, 64, 128), (16, 32, 64)
FACTORS = ((32, 16), (32, 32), (64, 32), (64, 64), (128, 64))
MOST_TOKENS = 128 * 64 // 2


def factors_for(tokens: int) -> tuple[int, int]:
    """N1 and N2 of the fewest points that sequences of so many tokens fit.

    Raises:
        PlanError: there are more tokens than any block has.
    """
    for n1, n2 in FACTORS:
        if n1 * n2 // 2 >= tokens:
            return n1, n2
    raise PlanError(
        f"no learned transform takes {tokens:,} tokens: the largest has {MOST_TOKENS:,}",
        notes=("a transform is one program, and half of its N1 * N2 points are padding",),
        hints=("cut sequences into blocks, or leave the factors out: a DFT takes any length",),
    )


def block_of(n1: int, n2: int) -> int:
    """The tokens of a block: half of the points."""
    return n1 * n2 // 2


def axis_of(letter: str, n1: int, n2: int) -> int:
    """The length of an axis of a factor: z is the real and the imaginary part."""
    return {"z": 2, "k1": n1, "n1": n1 // 2, "k2": n2, "n2": n2}[letter]
