"""One call of the reference in one precision: its tensors, its names, and what blocks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.dsl.expr import Ref
from attnc.dsl.proof import is_causal
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.reference.evaluate import Scope, evaluate, round_to
from attnc.ops.reference.state import (
    decays_channels,
    feature_count,
    monomials,
    state_heads,
)

# entries of [b, h, rows, TK] at once: about ten such fp64 tensors live together, 160 MB in all;
# a GPU has memory for more, and needs it, since small blocks cost it launches
BLOCK_ENTRIES = {"cpu": 1 << 21, "cuda": 1 << 24}


@dataclass(frozen=True, slots=True)
class Run:
    """One call: the inputs, the precision, and the sums that all blocks share."""

    variant: Variant
    q: Tensor
    k: Tensor
    v: Tensor
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    rounding: torch.dtype | None
    initial_state: Tensor | None

    @property
    def softmax(self) -> bool:
        return self.variant.family == "softmax"

    @property
    def group(self) -> int:
        """Query heads a key/value head."""
        return self.q.shape[2] // self.k.shape[2]

    @property
    def scale(self) -> float:
        return self.variant.scale.value(self.q.shape[-1])

    @property
    def by_channel(self) -> bool:
        """Whether each channel of phi(k) has a decay of its own."""
        return decays_channels(self.variant)

    @property
    def block_entries(self) -> int:
        """How many pairs are held at once."""
        return BLOCK_ENTRIES.get(self.q.device.type, BLOCK_ENTRIES["cpu"])

    def check(self, return_lse: bool, return_state: bool) -> None:
        if return_lse and not self.variant.has_lse:
            raise InputError("only the softmax family and sums of terms have an lse")
        if self.initial_state is None and not return_state:
            return
        if self.variant.family != "state":
            what = "a sum of terms" if self.variant.terms else f"the {self.variant.family} family"
            raise InputError(f"{what} has no state of fixed size")
        if not is_causal(self.variant.mask_form):
            raise InputError("a state holds all tokens so far, which asks for mask = causal")
        if self.q.shape[1] != self.k.shape[1]:
            lengths = f"{self.q.shape[1]} queries and {self.k.shape[1]} keys"
            raise InputError(f"a state needs as many queries as keys, not {lengths}")

    def round(self, value: Tensor) -> Tensor:
        return round_to(value, self.rounding)

    def feature_count(self) -> int:
        """F: how many features the state keeps."""
        return feature_count(self.variant, self.q.shape[-1])

    def scope(self, index: Mapping[str, Tensor], **names: Tensor) -> Scope:
        """Names of an expression: index letters, 0-d parameters, and what the caller adds."""
        device = self.q.device
        known = {name: value for name, value in self.tensors.items() if value.ndim == 0}
        sizes = {"H": self.q.shape[2], "d": self.q.shape[-1]}
        known |= {name: torch.tensor(size, device=device) for name, size in sizes.items()}
        return Scope(
            names={**known, **index, **names},
            load=lambda ref: self.load(ref, index),
            dtype=self.dtype,
            device=device,
            rounding=self.rounding,
        )

    def load(self, ref: Ref, index: Mapping[str, Tensor]) -> Tensor:
        """One declared tensor, each axis at the index of its letter."""
        declared = {d.name: d for d in (*self.variant.params, *self.variant.inputs)}[ref.name]
        picks = []
        outside: Tensor | None = None
        for letter, axis in zip(ref.index, declared.shape, strict=True):
            if "/" in axis:
                # blocks of queries count from the first query, whatever its position
                picks.append(index["row" if axis[0] == "i" else "j"] // int(axis[2:]))
                continue
            pick = index["row" if letter == axis == "i" else "hkv" if axis == "hkv" else letter]
            if axis == "t" and letter == "i":
                # with TQ > TK the first rows stand before token 0, where an input has no value
                outside = pick < 0
                pick = pick.clamp(min=0)
            picks.append(pick)
        tensor = self.tensors[ref.name]
        value = tensor[tuple(picks)] if picks else tensor
        return value if outside is None else torch.where(outside, 0, value)

    def map_channels(self, x: Tensor) -> Tensor:
        """phi(x) for a mapped variant, x itself for others."""
        phi = self.variant.feature_map.phi
        return x if phi is None else evaluate(phi, self.scope({}, x=x)).expand_as(x)

    def log_decays(self) -> Tensor | None:
        """The log decay of each token [B, HQ, TK] in fp64, [B, HQ, 1] if all share it.

        By channel it is [B, HQ, TK, K], or [B, HQ, 1, K].
        """
        if self.variant.log_decay is None:
            return None
        batch, tokens, heads = self.k.shape[0], self.k.shape[1], self.q.shape[2]
        device = self.q.device
        index = head_index(slice(0, batch), slice(0, heads), self.group, device)
        index["t"] = torch.arange(tokens, device=device).view(1, 1, 1, -1)
        if self.by_channel:
            index = {letter: place[..., None] for letter, place in index.items()}
            index["k"] = torch.arange(self.k.shape[-1], device=device).view(1, 1, 1, 1, -1)
        scope = replace(self.scope(index), dtype=torch.float64, rounding=None)
        rate = evaluate(self.variant.log_decay, scope)
        if self.by_channel:
            return rate.expand(batch, heads, 1, *rate.shape[-2:])[:, :, 0]
        return rate.expand(batch, heads, 1, rate.shape[-1] if rate.ndim else 1)[:, :, 0]

    def decay_sums(self) -> Tensor | None:
        """G [B, HQ, TK(, K)] in fp64: log decays of tokens 0 .. t summed; None without decay."""
        rate = self.log_decays()
        if rate is None or rate.shape[2] != 1:
            return rate if rate is None else rate.cumsum(2)
        count = torch.arange(1, self.k.shape[1] + 1, device=self.q.device)
        return rate * (count[:, None] if self.by_channel else count)

    def decay(self, exponent: Tensor) -> Tensor:
        """exp of a difference of sums: in fp32 for pt, rounded once."""
        return self.round(torch.exp(exponent.to(self.dtype)))

    def final_state(self, sums: Tensor | None) -> Tensor:
        """The state after the last token: sum_j exp(G_last - G_j) f(k_j) [v_j, 1]."""
        heads = state_heads(self.variant, self.q.shape[2], self.k.shape[2])
        of_query = torch.arange(heads, device=self.q.device) * (self.q.shape[2] // heads)
        of_key = of_query // self.group
        tokens = self.k.shape[1]
        step = max(1, self.block_entries // (self.feature_count() * self.k.shape[0] * heads))
        total: Tensor | None = None
        if self.initial_state is not None:
            total = self.initial_state.to(self.dtype)
            if sums is not None:
                last = sums[:, of_query, -1]
                last = last if self.by_channel else last[..., None]
                total = total * self.decay(last)[..., None]
        for start in range(0, tokens, step):
            part = slice(start, min(tokens, start + step))
            key = self.map_channels(self.k[:, part].transpose(1, 2)[:, of_key].to(self.dtype))
            value = self.extended(self.values(slice(0, self.v.shape[0]), of_query, part))
            features = monomials(self.variant, key, self.round)
            if sums is not None:
                to_end = self.decay(sums[:, of_query, -1:] - sums[:, of_query, part])
                if self.by_channel:
                    features = self.round(features * to_end)
                else:
                    value = self.round(value * to_end[..., None])
            folded = features.transpose(-1, -2) @ value
            total = folded if total is None else total + folded
        assert total is not None
        return self.round(total)

    def values(self, batch: slice, heads: Tensor, tokens: slice) -> Tensor:
        """What the keys of some tokens hand to query heads, [b, h, tokens, V]."""
        of_key = heads // self.group
        v = self.v[batch, tokens][:, :, of_key].transpose(1, 2).to(self.dtype)
        if self.variant.value is None:
            return v
        device = self.q.device
        index = {
            "b": torch.arange(batch.start, batch.stop, device=device).view(-1, 1, 1, 1),
            "h": heads.view(1, -1, 1, 1),
            "hkv": of_key.view(1, -1, 1, 1),
            "t": torch.arange(tokens.start, tokens.stop, device=device).view(1, 1, -1, 1),
            "c": torch.arange(v.shape[-1], device=device).view(1, 1, 1, -1),
        }
        scope = self.scope({**index, "j": index["t"]}, v=v)
        return self.round(evaluate(self.variant.value, scope).expand_as(v))

    def extended(self, value: Tensor) -> Tensor:
        """v, with a column of ones where the state keeps the normaliser."""
        if self.variant.normalize != "sum":
            return value
        return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def head_index(batch: slice, heads: slice, group: int, device: torch.device) -> dict[str, Tensor]:
    """b, h and hkv of a block, shaped to broadcast over [b, h, rows, TK]."""
    head = torch.arange(heads.start, heads.stop, device=device).view(1, -1, 1, 1)
    number = torch.arange(batch.start, batch.stop, device=device).view(-1, 1, 1, 1)
    return {"b": number, "h": head, "hkv": head // group}
