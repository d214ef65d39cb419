"""The words of the grammar: index names, functions with their arguments, and index letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.dsl.variant import Declared

INDEX_NAMES = frozenset({"s", "x", "v", "i", "j", "h", "b", "t", "hkv", "k", "c", "H", "d"})

# how a filter's taps are read: query's position minus key's
OFFSET = "i-j"

FUNCTIONS: Mapping[str, tuple[int, int]] = {
    "exp": (1, 1),
    "log": (1, 1),
    "log1p": (1, 1),
    "sqrt": (1, 1),
    "tanh": (1, 1),
    "sigmoid": (1, 1),
    "abs": (1, 1),
    "min": (2, 8),
    "max": (2, 8),
    "where": (3, 3),
    "softcap": (2, 2),
    "relu": (1, 1),
    "elu": (1, 1),
    "silu": (1, 1),
    "softplus": (1, 1),
    "window": (1, 2),
    "prefix": (1, 1),
    "documents": (1, 1),
    "blocks": (2, 2),
    "taylor": (1, 1),
}


def full_index(declared: Declared, letters: tuple[str, ...]) -> tuple[str, ...] | None:
    """The index with a letter for every axis, or None where it does not fit the shape."""
    shape = declared.shape
    if len(letters) == len(shape) - 1 and shape[0] == "b":
        letters = ("b", *letters)
    if len(letters) != len(shape) or not shape:
        return None
    for letter, axis in zip(letters, shape, strict=True):
        read_at = {"t": {"t", "i", "j"}, "T": {OFFSET}}.get(axis, {axis})
        if letter not in read_at:
            return None
    return letters
