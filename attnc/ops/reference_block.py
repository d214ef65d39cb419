"""The blocks of the reference: some rows of some heads against all keys, in one precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.dsl.expr import Ref
from attnc.dsl.proof import is_causal
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.evaluate import Scope, evaluate, evaluate_mask, round_to
from attnc.ops.reference_state import (
    feature_count,
    monomials,
    polynomial,
    query_weights,
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
    def block_entries(self) -> int:
        """How many pairs are held at once."""
        return BLOCK_ENTRIES.get(self.q.device.type, BLOCK_ENTRIES["cpu"])

    def check(self, return_lse: bool, return_state: bool) -> None:
        if return_lse and not self.softmax:
            raise InputError("only the softmax family has an lse")
        if self.initial_state is None and not return_state:
            return
        if self.softmax:
            raise InputError("the softmax family has no state of fixed size")
        if not is_causal(self.variant.mask_form):
            raise InputError("a state holds all tokens so far, which asks for mask = causal")
        if self.q.shape[1] != self.k.shape[1]:
            lengths = f"{self.q.shape[1]} queries and {self.k.shape[1]} keys"
            raise InputError(f"a state needs as many queries as keys, not {lengths}")

    def round(self, value: Tensor) -> Tensor:
        return round_to(value, self.rounding)

    def blocks(self, sums: Tensor | None) -> Iterator[Block]:
        """Blocks of `block_entries` pairs, given `decay_sums`; small inputs are one block."""
        batch, rows, heads = self.q.shape[:3]
        entries = self.block_entries
        keys = max(self.k.shape[1], self.feature_count() if self.initial_state is not None else 1)
        if batch * heads * rows * keys <= entries:
            yield Block.of(self, sums, slice(0, batch), slice(0, heads), slice(0, rows))
            return
        step = max(1, entries // keys)
        for b in range(batch):
            for h in range(heads):
                for start in range(0, rows, step):
                    part = slice(start, min(rows, start + step))
                    yield Block.of(self, sums, slice(b, b + 1), slice(h, h + 1), part)

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
        """The log decay of each token [B, HQ, TK] in fp64, [B, HQ, 1] if all share it."""
        if self.variant.log_decay is None:
            return None
        batch, tokens, heads = self.k.shape[0], self.k.shape[1], self.q.shape[2]
        device = self.q.device
        index = head_index(slice(0, batch), slice(0, heads), self.group, device)
        index["t"] = torch.arange(tokens, device=device).view(1, 1, 1, -1)
        scope = replace(self.scope(index), dtype=torch.float64, rounding=None)
        rate = evaluate(self.variant.log_decay, scope)
        return rate.expand(batch, heads, 1, rate.shape[-1] if rate.ndim else 1)[:, :, 0]

    def decay_sums(self) -> Tensor | None:
        """G [B, HQ, TK] in fp64: the log decays of tokens 0 .. t summed; None without decay."""
        rate = self.log_decays()
        if rate is None or rate.shape[-1] != 1:
            return rate if rate is None else rate.cumsum(-1)
        return rate * torch.arange(1, self.k.shape[1] + 1, device=self.q.device)

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
                total = total * self.decay(sums[:, of_query, -1, None, None])
        for start in range(0, tokens, step):
            part = slice(start, min(tokens, start + step))
            key = self.map_channels(self.k[:, part].transpose(1, 2)[:, of_key].to(self.dtype))
            value = self.extended(self.values(slice(0, self.v.shape[0]), of_query, part))
            features = monomials(self.variant, key, self.round)
            if sums is not None:
                to_end = sums[:, of_query, -1:] - sums[:, of_query, part]
                value = self.round(value * self.decay(to_end)[..., None])
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


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of some heads against all keys."""

    run: Run
    batch: slice
    heads: slice
    rows: slice
    query: Tensor  # [b, h, rows, K], phi applied
    key: Tensor  # [b, h, TK, K], phi applied
    value: Tensor  # [b, h, TK, V]
    sums: Tensor | None  # [b, h, TK]
    index: dict[str, Tensor]

    @classmethod
    def of(cls, run: Run, sums: Tensor | None, batch: slice, heads: slice, rows: slice) -> Block:
        device = run.q.device
        queries, keys = run.q.shape[1], run.k.shape[1]
        index = head_index(batch, heads, run.group, device)
        row = torch.arange(rows.start, rows.stop, device=device).view(1, 1, -1, 1)
        index |= {"row": row, "i": row + keys - queries}
        index["j"] = torch.arange(keys, device=device).view(1, 1, 1, -1)
        of_key = index["hkv"].flatten()
        return cls(
            run, batch, heads, rows,
            query=run.map_channels(run.q[batch, rows, heads].transpose(1, 2).to(run.dtype)),
            key=run.map_channels(run.k[batch][:, :, of_key].transpose(1, 2).to(run.dtype)),
            value=run.values(batch, index["h"].flatten(), slice(0, keys)),
            sums=None if sums is None else sums[batch, heads],
            index=index,
        )  # fmt: skip

    def scores(self) -> Tensor:
        """scale * phi(q).phi(k), [b, h, rows, TK]."""
        run = self.run
        return run.round(run.round(self.query @ self.key.transpose(-1, -2)) * run.scale)

    def visible(self, like: Tensor) -> Tensor:
        return evaluate_mask(self.run.variant.mask, self.run.scope(self.index)).expand_as(like)

    def softmax(self) -> tuple[Tensor, Tensor]:
        """Output and lse; the row maximum is taken out, and a row of nothing gives 0 and -inf."""
        run = self.run
        s = self.scores()
        s = evaluate(run.variant.score, run.scope(self.index, s=s)).expand_as(s)
        s = torch.where(self.visible(s), s, float("-inf"))
        # a packed sequence may have no key at all
        top = s.amax(-1, keepdim=True) if s.shape[-1] else s.new_full((*s.shape[:-1], 1), -math.inf)
        sink = None
        if run.variant.sink is not None:
            sink = evaluate(run.variant.sink, run.scope(self.index)).expand_as(top)
            top = torch.maximum(top, sink)
        top = torch.where(top == float("-inf"), 0, top)
        weight = torch.exp(s - top)
        total = weight.sum(-1, keepdim=True)
        if sink is not None:
            # a key of value 0 that every row sees
            total = total + torch.exp(sink - top)
        weight = run.round(weight / torch.where(total > 0, total, 1))
        return run.round(weight @ self.value), (top + torch.log(total))[..., 0]

    def weighted(self) -> Tensor:
        """Output of the state family: polynomial weights, decay, the start's part, normaliser."""
        run = self.run
        s = self.scores()
        visible = self.visible(s)
        weight = polynomial(run.variant, s, run.round)
        if self.sums is not None:
            position = self.index["i"].flatten().clamp(min=0)
            exponent = self.sums[:, :, position, None] - self.sums[:, :, None, :]
            # hidden pairs may lie after the query, where the exponent grows without bound
            exponent = torch.where(visible, exponent, float("-inf"))
            weight = run.round(weight * run.decay(exponent))
        weight = torch.where(visible, weight, 0)
        out = run.round(weight @ self.value)
        summed = run.variant.normalize == "sum"
        # the normaliser of a long row passes fp16's largest number: it stays wide in pt too
        wide = run.dtype if run.rounding is None else torch.float32
        normaliser = weight.to(wide).sum(-1, keepdim=True)
        if run.initial_state is not None:
            features, state = self.from_state()
            columns = self.value.shape[-1]
            out = run.round(out + run.round(features @ state[..., :columns].to(run.dtype)))
            if summed:
                normaliser = normaliser + features.to(wide) @ state[..., columns:].to(wide)
        if not summed:
            return out
        return run.round(out / torch.where(normaliser == 0, 1, normaliser))

    def from_state(self) -> tuple[Tensor, Tensor]:
        """phi_q(q_i) decayed over the tokens 0 .. i, and the S it meets."""
        run = self.run
        assert run.initial_state is not None
        heads = self.index["h"].flatten()
        of_state = heads // (run.q.shape[2] // run.initial_state.shape[1])
        state = run.initial_state[self.batch][:, of_state]
        weights = query_weights(run.variant, self.query.shape[-1], run.scale)
        features = monomials(run.variant, self.query, run.round)
        features = run.round(features * weights.to(features))
        if self.sums is not None:
            features = run.round(features * run.decay(self.sums[:, :, self.rows])[..., None])
        return features, state
