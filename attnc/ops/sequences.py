"""Sequences packed into one call: the part of each, for the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from attnc.dsl.mask_data import CU_SEQLENS
from attnc.dsl.variant import Variant


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of a packed call: its queries, its keys, and its part of each tensor."""

    rows: slice
    keys: slice
    parts: dict[str, tuple[slice, ...]]
    sink: bool

    @property
    def empty(self) -> bool:
        """Whether it has no query, or nothing that one could see: no key and no sink."""
        no_rows, no_keys = (part.start == part.stop for part in (self.rows, self.keys))
        return no_rows or (no_keys and not self.sink)

    def tensors(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The declared tensors as a call of this sequence alone would get them."""
        return {name: whole[name][part] for name, part in self.parts.items()}


def sequences_of(variant: Variant, tensors: Mapping[str, Tensor]) -> Iterator[Sequence]:
    """Every sequence of a call; `tensors` hold cu_seqlens_q and cu_seqlens_k besides."""
    starts = [tensors[name].tolist() for name in ("cu_seqlens_q", "cu_seqlens_k")]
    shapes = {d.name: d.shape for d in (*variant.params, *variant.inputs)}
    for n, (rows, keys) in enumerate(zip(*map(pairwise, starts), strict=True)):
        mine = {"i": slice(*rows), "t": slice(*keys), "j": slice(*keys)}
        parts = {}
        for name, axes in shapes.items():
            if name in CU_SEQLENS:
                continue
            # what has no axis of tokens has an entry for each sequence
            entry = slice(None) if {"i", "j", "t"} & set(axes) else slice(n, n + 1)
            parts[name] = tuple({**mine, "b": entry}.get(axis, slice(None)) for axis in axes)
        yield Sequence(slice(*rows), slice(*keys), parts, sink=variant.sink is not None)
