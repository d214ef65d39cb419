"""What a softmax or a sum of terms carries from token to token: keys and values rows still see."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnc.errors import InputError


@dataclass(slots=True, eq=False)
class KVCache:
    """A cache of keys and values, in place: steps and prefills write these tensors.

    `keys` are [B, C, HKV, K], `values` [B, C, HKV, V], in the dtype of k and v: position j stands
    in row j, in a `ring` in row j % C, and `paged` in row j % P of page `block_table`[b, j // P],
    where `keys` are [PAGES, P, HKV, K]. `lengths` [B] int32 counts each sequence's tokens on the
    device; a new token's position is its sequence's length, and steps read it there. `tokens` is
    the host's count of the longest, which replays of a CUDA graph do not advance.
    """

    keys: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor
    kind: str
    block_table: torch.Tensor | None = None
    tokens: int = 0

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        dims: tuple[int, int],
        capacity: int,
        *,
        kind: str,
        dtype: torch.dtype,
        device: torch.device,
        page_size: int = 0,
        pages: int | None = None,
        block_table: torch.Tensor | None = None,
    ) -> KVCache:
        """A cache of no tokens; its memory is head by head, so that a head's keys lie together."""
        rows = (batch, capacity)
        if kind == "paged":
            each = -(-capacity // page_size)
            rows = (batch * each if pages is None else pages, page_size)
            if block_table is None:
                numbers = torch.arange(batch * each, dtype=torch.int32, device=device)
                block_table = numbers.view(batch, each)
        keys, values = (
            torch.zeros((rows[0], heads, rows[1], dim), dtype=dtype, device=device).transpose(1, 2)
            for dim in dims
        )
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        return cls(keys, values, lengths, kind, block_table)

    @property
    def capacity(self) -> int:
        """Tokens that a sequence may have; of a ring, those that it holds at a time."""
        if self.block_table is None:
            return self.keys.shape[1]
        return self.block_table.shape[1] * self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values))

    def reset(self) -> None:
        """Back to before the first token, in place."""
        self.lengths.zero_()
        self.tokens = 0

    def clone(self) -> KVCache:
        """A cache of its own with the same tokens."""
        keys, values = (x.transpose(1, 2).clone().transpose(1, 2) for x in (self.keys, self.values))
        table = None if self.block_table is None else self.block_table.clone()
        return KVCache(keys, values, self.lengths.clone(), self.kind, table, self.tokens)

    def length(self) -> int:
        """The tokens of every sequence, read from the device.

        Raises:
            InputError: sequences of several lengths.
        """
        found = sorted(set(self.lengths.tolist()))
        if len(found) > 1:
            raise InputError(
                f"the sequences of this cache have lengths from {found[0]} to {found[-1]}",
                notes=("a prefill is one call of the op, whose rows end at one key",),
                hints=("prefill before the lengths part, or each sequence in a cache of its own",),
            )
        return int(found[0])

    def room(self, tokens: int, held: int) -> None:
        """See that so many more tokens have room.

        Raises:
            InputError: the cache is full.
        """
        if self.kind != "ring" and held + tokens > self.capacity:
            raise InputError(
                f"the cache is full: it holds {held} tokens of {self.capacity}, and {tokens} more "
                f"come{'s' if tokens == 1 else ''}",
                hints=("init_state(capacity=...) makes a larger one",),
            )

    def write(self, start: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keys and values of the positions from `start` on; a ring keeps the last ones."""
        kept = min(k.shape[1], self.capacity)
        at = torch.arange(start + k.shape[1] - kept, start + k.shape[1], device=self.keys.device)
        for cache, new in ((self.keys, k), (self.values, v)):
            cache[self._place(at)] = new[:, k.shape[1] - kept :]

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions [start, stop): a view where they lie in order."""
        if self.kind == "contiguous":
            return self.keys[:, start:stop], self.values[:, start:stop]
        place = self._place(torch.arange(start, stop, device=self.keys.device))
        return self.keys[place], self.values[place]

    def _place(self, at: torch.Tensor) -> tuple[slice | torch.Tensor, torch.Tensor]:
        if self.block_table is not None:
            page = self.keys.shape[1]
            return self.block_table[:, at // page].long(), at % page
        return slice(None), at % self.capacity
