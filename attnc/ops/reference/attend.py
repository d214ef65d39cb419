"""What a variant means, in eager torch: the parallel form of the design's formula, block by block.

    s(i,j) = scale * phi(q_i) . phi(k_j), then score(s, i, j, h, b, params)
    o_i    = 1/n_i * sum_j M(i,j) * w(s) * exp(G_i - G_j) * v_j

and for a sum of terms the same over all terms, each with its own s, M and w, under one n_i.

`reference` computes it in fp64. `pt` computes the same with every intermediate rounded to the
working dtype, decay exponents in fp32: what eager torch would have got, hence the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.dsl.scale_names import SCALES
from attnc.dsl.scales import unscaled_of
from attnc.dsl.sequences import alone_of
from attnc.dsl.variant import Variant
from attnc.ops.reference.block import blocks
from attnc.ops.reference.run import Run
from attnc.ops.sequences import sequences_of


@dataclass(frozen=True, slots=True)
class Attended:
    """An output [B, TQ, HQ, V], and where asked the lse [B, HQ, TQ] and the state [B, HS, F, V]."""

    out: Tensor
    lse: Tensor | None = None
    state: Tensor | None = None

    def as_returned(self) -> Tensor | tuple[Tensor, ...]:
        """The output alone, or a tuple with what else was asked for."""
        extra = tuple(x for x in (self.lse, self.state) if x is not None)
        return (self.out, *extra) if extra else self.out


def reference(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    initial_state: Tensor | None = None,
    return_lse: bool = False,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Attention by the formula, in `dtype`; returns what the op returns.

    Shapes: q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V] -> [B, TQ, HQ, V]; lse
    [B, HQ, TQ]; states [B, HS, F, V], with the normaliser as column V under normalize "sum".
    """
    return attend(
        variant, q, k, v, tensors, dtype=dtype, initial_state=initial_state,
        return_lse=return_lse, return_state=return_state,
    ).as_returned()  # fmt: skip


def pt(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    initial_state: Tensor | None = None,
    return_lse: bool = False,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """The same in the dtype of q, every intermediate rounded; its error is the measure of ours."""
    return attend(
        variant, q, k, v, tensors, dtype=torch.float32, rounding=q.dtype,
        initial_state=initial_state, return_lse=return_lse, return_state=return_state,
    ).as_returned()  # fmt: skip


def attend(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    rounding: torch.dtype | None = None,
    initial_state: Tensor | None = None,
    return_lse: bool = False,
    return_state: bool = False,
) -> Attended:
    """Compute in `dtype`, rounding what is computed from q, k, v or a state to `rounding`.

    Raises: InputError for an lse outside the softmax family, a state outside the state family, or
    a state of a mask that is not causal.
    """
    if variant.scaled:
        q, k, v, tensors = dequantised(q, k, v, tensors or {}, dtype)
        variant = unscaled_of(variant)
    if variant.mask_form.packed:
        return _attend_sequences(
            variant, q, k, v, tensors or {}, initial_state, dtype=dtype, rounding=rounding,
            return_lse=return_lse, return_state=return_state,
        )  # fmt: skip
    with torch.autocast(q.device.type, enabled=False):
        run = Run(variant, q, k, v, dict(tensors or {}), dtype, rounding, initial_state)
        run.check(return_lse, return_state)
        out = q.new_zeros((*q.shape[:3], v.shape[-1]), dtype=dtype)
        lse = q.new_zeros((q.shape[0], q.shape[2], q.shape[1]), dtype=dtype)
        sums = run.decay_sums()
        for block in blocks(run, sums):
            values, block_lse = block.attended()
            out[block.batch, block.rows, block.heads] = values.transpose(1, 2)
            if block_lse is not None:
                lse[block.batch, block.heads, block.rows] = block_lse
        state = run.final_state(sums) if return_state else None
        out = out if rounding is None else out.to(rounding)
        return Attended(out, lse if return_lse else None, state)


def dequantised(
    q: Tensor, k: Tensor, v: Tensor, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """8-bit q, k and v multiplied by their scales in `dtype`, and the other tensors."""
    given = {"q_scale": q, "k_scale": k, "v_scale": v}
    wide = {name: given[name].to(dtype) * tensors[name].to(dtype)[:, None] for name in given}
    rest = {name: tensor for name, tensor in tensors.items() if name not in SCALES}
    return wide["q_scale"], wide["k_scale"], wide["v_scale"], rest


def _attend_sequences(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Mapping[str, Tensor],
    initial_state: Tensor | None,
    *,
    dtype: torch.dtype,
    rounding: torch.dtype | None,
    return_lse: bool,
    return_state: bool,
) -> Attended:
    """A packed call, sequence by sequence; what sees no key and no sink gives 0 and -inf.

    States [N, HS, F, V] are one a sequence; that of an empty one stays as it was.
    """
    alone = alone_of(variant)
    out = q.new_zeros((*q.shape[:3], v.shape[-1]), dtype=rounding or dtype)
    lse = q.new_full((1, q.shape[2], q.shape[1]), float("-inf"), dtype=dtype)
    states: list[Tensor | None] = []
    for n, part in enumerate(sequences_of(variant, tensors)):
        start = None if initial_state is None else initial_state[n : n + 1]
        states.append(start)
        if part.empty:
            continue
        found = attend(
            alone, q[:, part.rows], k[:, part.keys], v[:, part.keys], part.tensors(tensors),
            dtype=dtype, rounding=rounding, initial_state=start, return_lse=return_lse,
            return_state=return_state,
        )  # fmt: skip
        out[:, part.rows] = found.out
        states[n] = found.state
        if found.lse is not None:
            lse[:, :, part.rows] = found.lse
    state = None
    if return_state:
        like = next((x for x in states if x is not None), None)
        assert like is not None, "an empty call is refused"
        state = torch.cat([torch.zeros_like(like) if x is None else x.to(like) for x in states])
    return Attended(out, lse if return_lse else None, state)
