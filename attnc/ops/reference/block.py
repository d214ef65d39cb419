"""The blocks of the reference: some rows of some heads against all keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.dsl.expr import Expr
from attnc.dsl.variant import Variant
from attnc.ops.reference.evaluate import evaluate, evaluate_mask
from attnc.ops.reference.run import Run, head_index
from attnc.ops.reference.state import monomials, polynomial, query_weights


def blocks(run: Run, sums: Tensor | None) -> Iterator[Block]:
    """Blocks of `run.block_entries` pairs, given `run.decay_sums`; small inputs are one block."""
    batch, rows, heads = run.q.shape[:3]
    entries = run.block_entries
    keys = max(run.k.shape[1], run.feature_count() if run.initial_state is not None else 1)
    if run.by_channel:
        keys *= run.k.shape[-1]  # every pair has a decay a channel
    if batch * heads * rows * keys <= entries:
        yield Block.of(run, sums, slice(0, batch), slice(0, heads), slice(0, rows))
        return
    step = max(1, entries // keys)
    for b in range(batch):
        for h in range(heads):
            for start in range(0, rows, step):
                part = slice(start, min(rows, start + step))
                yield Block.of(run, sums, slice(b, b + 1), slice(h, h + 1), part)


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
    sums: Tensor | None  # [b, h, TK], or [b, h, TK, K] by channel
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

    def visible(self) -> Tensor:
        seen = evaluate_mask(self.run.variant.mask, self.run.scope(self.index))
        return seen.expand(*self.query.shape[:3], self.key.shape[2])

    def exponents(self, visible: Tensor) -> Tensor:
        """G_i - G_j, -inf where hidden: the exponent there may grow without bound."""
        assert self.sums is not None
        position = self.index["i"].flatten().clamp(min=0)
        apart = self.sums[:, :, position].unsqueeze(3) - self.sums.unsqueeze(2)
        hidden = visible if apart.ndim == 4 else visible[..., None]
        return torch.where(hidden, apart, float("-inf"))

    def decayed_scores(self, visible: Tensor) -> Tensor:
        """scale * sum_k phi(q)_k phi(k)_k exp(G_ik - G_jk): each channel decays by itself."""
        run = self.run
        products = run.round(self.query.unsqueeze(3) * self.key.unsqueeze(2))
        products = run.round(products * run.decay(self.exponents(visible)))
        return run.round(run.round(products.sum(-1)) * run.scale)

    def attended(self) -> tuple[Tensor, Tensor | None]:
        """Output, and the lse where there is one."""
        if self.run.variant.terms:
            return self.summed()
        return self.softmax() if self.run.softmax else (self.weighted(), None)

    def softmax(self) -> tuple[Tensor, Tensor]:
        """Output and lse; the row maximum is taken out, and a row of nothing gives 0 and -inf."""
        run = self.run
        s = self.scores()
        visible = self.visible()
        scope = replace(run.scope(self.index, s=s), seen=visible)
        s = torch.where(visible, evaluate(run.variant.score, scope).expand_as(s), float("-inf"))
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

    def summed(self) -> tuple[Tensor, Tensor]:
        """Output and lse of a sum of terms: all weights over the largest of a row."""
        run = self.run
        logs = torch.stack([self.log_weight(term) for term in run.variant.terms])
        top = logs.amax((0, -1))[..., None] if logs.shape[-1] else logs[0].sum(-1, True) - math.inf
        sink = None
        if run.variant.sink is not None:
            sink = evaluate(run.variant.sink, run.scope(self.index)).expand_as(top)
            top = torch.maximum(top, sink)
        top = torch.where(top == float("-inf"), 0, top).detach()
        weight = torch.exp(logs - top).sum(0)
        total = weight.sum(-1, keepdim=True)
        if sink is not None:
            total = total + torch.exp(sink - top)
        weight = run.round(weight / torch.where(total > 0, total, 1))
        return run.round(weight @ self.value), (top + torch.log(total))[..., 0]

    def log_weight(self, term: Variant) -> Tensor:
        """The log of factor * w(s) of one term, [b, h, rows, TK]; -inf where it sees nothing."""
        run = replace(self.run, variant=term)
        query, key = run.map_channels(self.query), run.map_channels(self.key)
        s = run.round(run.round(query @ key.transpose(-1, -2)) * run.scale)
        visible = evaluate_mask(term.mask, run.scope(self.index)).expand_as(s)
        if term.family == "softmax":
            scope = replace(run.scope(self.index, s=s), seen=visible)
            log = evaluate(term.score, scope).expand_as(s)
        else:
            weight = polynomial(term, s, run.round)
            seen = visible & (weight > 0)
            # the branch not taken is kept finite, or its gradient would be inf * 0
            log = torch.where(seen, torch.log(torch.where(seen, weight, 1)), float("-inf"))
        if term.factor is not None:
            log = log + torch.log(evaluate(term.factor, run.scope(self.index)))
        return torch.where(visible, log, float("-inf"))

    def weighted(self) -> Tensor:
        """Output of any weight but a softmax's: weights, decay, the start's part, normaliser."""
        run = self.run
        visible = self.visible()
        s = self.decayed_scores(visible) if run.by_channel else self.scores()
        if run.variant.feature_map.weight is None:
            weight = polynomial(run.variant, s, run.round)
        else:
            weight = self.pointwise(run.variant.feature_map.weight, s, visible)
        if self.sums is not None and not run.by_channel:
            weight = run.round(weight * run.decay(self.exponents(visible)))
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

    def pointwise(self, weight: Expr, s: Tensor, visible: Tensor) -> Tensor:
        """What a weight makes of the declared score."""
        run = self.run
        scope = replace(run.scope(self.index, s=s), seen=visible)
        score = evaluate(run.variant.score, scope).expand_as(s)
        return evaluate(weight, replace(run.scope({}, s=score), seen=visible)).expand_as(s)

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
            before = run.decay(self.sums[:, :, self.rows])
            features = run.round(features * (before if run.by_channel else before[..., None]))
        return features, state
