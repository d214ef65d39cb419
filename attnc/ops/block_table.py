"""FlashAttention v1's block masks as tables that `blocks(table, size)` takes."""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.errors import InputError


def block_table(
    mask: Tensor,
    size: int,
    *,
    rows: int = 16,
    columns: int = 256,
    lengths: tuple[int, int] | None = None,
) -> Tensor:
    """A 0/1 mask of blocks of `rows` queries by `columns` keys as one of `size` by `size`.

    mask [.., TQ/rows, TK/columns], FlashAttention v1's layout by default (its `convert_blockmask`
    is not needed) -> [.., TQ/size, TK/size]. `lengths` are (TQ, TK) where the last block is ragged.

    Raises:
        InputError: a size that is no multiple or divisor, or a mask that is finer than the size.
    """
    if mask.dim() < 2:
        raise InputError(
            f"a block mask has rows and columns of blocks, not shape {list(mask.shape)}"
        )
    tq, tk = lengths or (mask.shape[-2] * rows, mask.shape[-1] * columns)
    kept = mask != 0
    for axis, block, tokens, what in ((-2, rows, tq, "queries"), (-1, columns, tk, "keys")):
        if -(-tokens // block) != kept.shape[axis]:
            raise InputError(
                f"the block mask has {kept.shape[axis]} blocks of {block} {what}, and {tokens:,} "
                f"{what} have {-(-tokens // block)}"
            )
        kept = _resized(kept, axis, block, size, what).narrow(axis, 0, -(-tokens // size))
    return kept.to(torch.float32)


def _resized(kept: Tensor, axis: int, block: int, size: int, what: str) -> Tensor:
    if block % size == 0:
        return kept.repeat_interleave(block // size, axis)
    if size % block:
        raise InputError(
            f"blocks of {block} {what} and of {size} fit into each other neither way",
            hints=(f"take a size that {block} divides, or that divides {block}",),
        )
    group = size // block
    count = -(-kept.shape[axis] // group)
    places = torch.arange(count * group, device=kept.device).clamp(max=kept.shape[axis] - 1)
    moved = kept.index_select(axis, places).movedim(axis, -1)
    grouped = moved.reshape(*moved.shape[:-1], count, group)
    if not bool((grouped.all(-1) == grouped.any(-1)).all()):
        raise InputError(
            f"the block mask tells {what} of one block of {size} apart",
            notes=(f"its own blocks have {block} {what}",),
            hints=(f"take size={block}, or a mask that is as coarse as the size",),
        )
    return grouped.any(-1).movedim(-1, axis)
