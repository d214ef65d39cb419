"""What a sum of terms carries from token to token where a state holds one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnc.ops.decode.kv_cache import KVCache
from attnc.ops.decode.matrix_state import MatrixState


@dataclass(frozen=True, slots=True, eq=False)
class SumState:
    """A ring of the latest keys and values, and a state of the keys behind them, in place.

    `matrix` holds the folded term, whose mask is i - j >= N: after the last token, at position p,
    every key j with p - j >= N, which is what the row of p read. `cache` is a ring of as many keys
    as the other terms see, and of N + 1 at least, from which keys enter the state. Its lengths are
    those of the sequences.
    """

    cache: KVCache
    matrix: MatrixState

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int32, on the device: the tokens of each sequence."""
        return self.cache.lengths

    @property
    def tokens(self) -> int:
        """The host's count of the longest sequence."""
        return self.cache.tokens

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and the state; they do not grow."""
        return self.cache.nbytes + self.matrix.nbytes

    def reset(self) -> None:
        """Back to before the first token, in place."""
        self.cache.reset()
        self.matrix.reset()

    def clone(self) -> SumState:
        """A state of its own with the same tokens."""
        return SumState(self.cache.clone(), self.matrix.clone())
