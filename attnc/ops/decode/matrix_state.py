"""What a state-family variant carries from token to token: a matrix a head, and its normaliser."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnc.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class MatrixState:
    """The state after the last token, in place: steps and prefills write these tensors.

    `matrix` is [B, HS, F, V] fp32: sum over tokens of decay * f(k)^T v, each token's key at full
    weight when it enters, the next token's decay not yet applied. `sums` is [B, HS, F] fp32, the
    same of a value that is 1 everywhere, or None where nothing is normalised. HS counts query heads
    where the decay depends on the head, else key/value heads; F and its order: docs/state.md.
    """

    matrix: torch.Tensor
    sums: torch.Tensor | None

    @classmethod
    def zeros(
        cls,
        shape: tuple[int, int, int, int],
        *,
        summed: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> MatrixState:
        """The state before the first token; `shape` is that of `packed`."""
        batch, heads, features, columns = shape
        matrix = torch.zeros((batch, heads, features, columns - summed), dtype=dtype, device=device)
        sums = torch.zeros(shape[:3], dtype=dtype, device=device) if summed else None
        return cls(matrix, sums)

    @property
    def nbytes(self) -> int:
        """Bytes that a step reads, and writes again."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What a step takes."""
        return (self.matrix,) if self.sums is None else (self.matrix, self.sums)

    def packed(self) -> torch.Tensor:
        """A copy as `initial_state` takes it: [B, HS, F, V], with the sums as column V."""
        if self.sums is None:
            return self.matrix.clone()
        return torch.cat([self.matrix, self.sums[..., None]], -1)

    def fill(self, packed: torch.Tensor) -> None:
        """Take the numbers of a state that a call returned, in place.

        Raises:
            InputError: it is of another shape.
        """
        expected = [*self.matrix.shape[:-1], self.matrix.shape[-1] + (self.sums is not None)]
        if list(packed.shape) != expected:
            raise InputError(
                f"a state of shape {list(packed.shape)} does not fit one of {expected}",
                notes=("the state is [B, HS, F, columns]; see docs/state.md",),
            )
        with torch.no_grad():
            self.matrix.copy_(packed[..., : self.matrix.shape[-1]])
            if self.sums is not None:
                self.sums.copy_(packed[..., -1])

    def reset(self) -> None:
        """Back to before the first token, in place."""
        for tensor in self.tensors:
            tensor.zero_()

    def clone(self) -> MatrixState:
        """A state of its own with the same numbers."""
        return MatrixState(self.matrix.clone(), None if self.sums is None else self.sums.clone())
