"""The shapes and variants that `benchmarks.softmax` and `benchmarks.softmax_backward` time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant

# B * S and H * D of every plain cell, as others publish theirs
_TOKENS, _CHANNELS = 16384, 2048
_MASKS = {
    "full": "full",
    "causal": "causal",
    "window128": "causal & window(127)",
    "window1024": "causal & window(1023)",
    "alibi": "causal",
    "softcap": "causal",
    "gqa": "causal",
}
_SCORES = {"alibi": "s - slope[h] * (i - j)", "softcap": "softcap(s, 50)"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One shape of one variant: q is [batch, tokens, hq, dim]."""

    name: str
    batch: int
    tokens: int
    hq: int
    hkv: int
    dim: int
    work: str

    @property
    def variant(self) -> Variant:
        lines = [f"[{self.name}]", 'feature_map = "softmax"', 'scale = "rsqrt(d)"']
        if _MASKS[self.name] != "full":
            lines.append(f'mask = "{_MASKS[self.name]}"')
        if self.name in _SCORES:
            lines.append(f'score = "{_SCORES[self.name]}"')
        if self.name == "alibi":
            lines.append('params.slope = { shape = ["h"] }')
        return loads("\n".join(lines))[self.name]

    @property
    def flops(self) -> float:
        """Of both products over the visible pairs; a causal half counts as half."""
        pairs = self.tokens**2 * (1.0 if self.name == "full" else 0.5)
        if self.name.startswith("window"):
            pairs = self.tokens * min(self.tokens / 2, int(self.name.removeprefix("window")))
        return 4.0 * self.batch * self.hq * pairs * self.dim


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for work, dim in product(options.work, options.dims):
        if work == "plain":
            heads = _CHANNELS // dim
            for tokens in options.tokens:
                for name in ("full", "causal"):
                    yield Cell(name, _TOKENS // tokens, tokens, heads, heads, dim, work)
        else:
            for name in ("window128", "window1024", "alibi", "softcap"):
                yield Cell(name, 2, 8192, 16, 16, dim, work)
            yield Cell("gqa", 2, 8192, 32, 8, dim, work)
