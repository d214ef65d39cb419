"""What a convolution keeps from token to token: its last inputs, in a ring."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class FilterState:
    """Inputs u = pregate * v of the last R tokens, written in place by steps and prefills.

    `ring` is [B, C, R], position n in slot n % R; `lengths` [B] int32 counts the tokens so far, on
    the device.
    """

    ring: torch.Tensor
    lengths: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads once the ring is full."""
        return self.ring.numel() * self.ring.element_size()

    def reset(self) -> None:
        """Back to before the first token, in place."""
        self.lengths.zero_()

    def clone(self) -> FilterState:
        """A state of its own with the same numbers."""
        return FilterState(self.ring.clone(), self.lengths.clone())

    def past(self, tokens: int) -> torch.Tensor:
        """The last inputs [B, C, min(tokens, R)] in order, of sequences of as many tokens."""
        reach = min(tokens, self.ring.shape[2])
        slots = torch.arange(tokens - reach, tokens, device=self.ring.device) % self.ring.shape[2]
        return self.ring[:, :, slots]

    def take(self, inputs: torch.Tensor, tokens: int) -> None:
        """Put inputs [B, C, T] into the ring after so many tokens."""
        new = inputs.shape[2]
        reach = min(new, self.ring.shape[2])
        positions = torch.arange(tokens + new - reach, tokens + new, device=self.ring.device)
        self.ring[:, :, positions % self.ring.shape[2]] = inputs[:, :, new - reach :]
        self.lengths.fill_(tokens + new)
