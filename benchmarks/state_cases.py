"""What `benchmarks.state` times: shapes, variants and peers of the state family.

Floors count each tensor once: q, k, v and o forward, with do and the gradients backward, at 3 TB/s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from attnc.dsl import loads
from attnc.dsl.variant import Variant
from attnc.ops.shipped import shipped

HBM = 3.0e12
# beside the shipped ones: what a gate and what a feature map cost at one shape
OTHERS = """
[ungated]
feature_map = "identity"
scale = 1.0
log_decay = "-slope[h]"
mask = "causal"
normalize = "none"
params.slope = { shape = ["h"] }

[gated]
feature_map = "identity"
scale = 1.0
log_decay = "-g[b,t,h]**2"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"] }

[elu]
feature_map = "elu(x) + 1"
scale = 1.0
mask = "causal"
normalize = "none"

[relu2]
feature_map = "relu(x)**2"
scale = 1.0
mask = "causal"
normalize = "none"

[elu_sum]
feature_map = "elu(x) + 1"
scale = 1.0
mask = "causal"
normalize = "sum"
"""


@dataclass(frozen=True)
class Case:
    """One row: a group, a variant, and its shape; `dims` are (K, V)."""

    group: str
    variant: str
    batch: int
    tokens: int
    heads: int
    dims: tuple[int, int]

    @property
    def name(self) -> str:
        """Selects the row: group/variant/B-T-H-K-V."""
        sizes = (self.batch, self.tokens, self.heads, *self.dims)
        return f"{self.group}/{self.variant}/{'-'.join(map(str, sizes))}"

    def floor_ms(self, phase: str) -> float:
        """The time of the bytes that have to move."""
        qk, v = self.dims
        channels = 2 * qk + 2 * v if phase == "forward" else 4 * qk + 3 * v
        return self.batch * self.tokens * self.heads * channels * 2 / HBM * 1e3


def cases() -> tuple[Case, ...]:
    """All rows, the ones with targets first."""
    lightning = [
        Case("lightning", "lightning", batch, tokens, heads, (dim, dim))
        for heads, dim in ((32, 64), (16, 128))
        for batch, tokens in ((32, 1024), (8, 4096), (2, 16384), (1, 65536))
    ]
    based = [
        Case("based", "based", batch, tokens, 16, (16, 64))
        for batch, tokens in ((32, 1024), (8, 4096), (2, 16384))
    ]
    maps = [
        Case("maps", name, 8, 4096, 32, (64, 64))
        for name in ("ungated", "gated", "elu", "relu2", "elu_sum")
    ]
    small = [Case("small", "lightning", 1, 2048, 16, (128, 128))]
    length = [
        Case("length", "lightning", 262144 // tokens, tokens, 16, (64, 64))
        for tokens in (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
    ]
    return (*lightning, *based, *small, *maps, *length)


@cache
def variants() -> dict[str, Variant]:
    """The shipped variants, and this file's."""
    return {**shipped(), **loads(OTHERS)}


def slopes(heads: int) -> Tensor:
    """ALiBi's: 2**(-8 (h + 1) / H)."""
    return torch.exp2(-torch.arange(1, heads + 1, device="cuda") / heads * 8).float()


def draw(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v and do in bf16, fresh, and what the variant declares."""
    qk, v = case.dims
    made = [
        torch.randn(case.batch, case.tokens, case.heads, dim, device="cuda", dtype=torch.bfloat16)
        for dim in (qk, qk, v, v)
    ]
    made[1] /= qk**0.5
    variant = variants()[case.variant]
    declared: dict[str, Tensor] = {}
    for item in (*variant.params, *variant.inputs):
        if item.name == "slope":
            declared["slope"] = slopes(case.heads)
        else:
            shape = (case.batch, case.tokens, case.heads)
            declared[item.name] = torch.rand(shape, device="cuda") * 0.3
    return made, declared


def peers(case: Case, declared: dict[str, Tensor]) -> dict[str, Callable[..., Tensor]]:
    """What a user would run instead, by name; a peer takes q, k and v."""
    if case.variant in {"lightning", "ungated"}:
        from fla.ops.simple_gla import chunk_simple_gla

        rates = -declared["slope"]
        return {"fla": lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=rates, scale=1.0)[0]}
    if case.variant == "gated":
        from fla.ops.simple_gla import chunk_simple_gla

        gates = -(declared["g"] ** 2)
        return {"fla": lambda q, k, v: chunk_simple_gla(q, k, v, g=gates, scale=1.0)[0]}
    if case.variant == "based":
        from fla.ops.based import fused_chunk_based, parallel_based

        return {
            "fla fused": lambda q, k, v: _first(fused_chunk_based(q, k, v, use_norm=True)),
            "fla parallel": lambda q, k, v: _first(parallel_based(q, k, v, use_norm=True)),
        }
    return {}


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
