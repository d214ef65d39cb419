"""The layers that `attnc demo` shows: the shapes of published models, and the slice that is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer of a published model; `sliced` is (q heads, kv heads) of what is run.

    `heads` are (q, kv), `dims` (K, V); the batch is 1.
    """

    variant: str
    model: str
    heads: tuple[int, int]
    dims: tuple[int, int]
    tokens: int
    sliced: tuple[int, int]
    source: str

    @property
    def shape(self) -> str:
        """The full size on one line."""
        (q, kv), (qk, v) = self.heads, self.dims
        heads = f"H={q}" if q == kv else f"H={q}/{kv}"
        dims = f"D={qk}" if qk == v else f"D={qk},{v}"
        return f"{heads} {dims} T={self.tokens}"


# ragged against every tile that a plan has: 160 is no multiple of 64 or 128
SLICE_TOKENS = 160

LAYERS = (
    Layer(
        variant="flash",
        model="Llama-3-8B",
        heads=(32, 8),
        dims=(128, 128),
        tokens=8192,
        sliced=(4, 1),
        source="arXiv 2407.21783, table 3: 4096 channels, 32 heads, 8 key/value heads; 8K context",
    ),
    Layer(
        variant="based",
        model="Based-1.3B",
        heads=(16, 16),
        dims=(16, 112),
        tokens=2048,
        sliced=(2, 2),
        source="HazyResearch/based, based-1b.yaml: 1792 channels, 16 heads, feature_dim 16",
    ),
    Layer(
        variant="lightning",
        model="TransNormerLLM-0.4B",
        heads=(8, 8),
        dims=(128, 128),
        tokens=2048,
        sliced=(2, 2),
        source="arXiv 2307.14995, model sizes: 1024 channels, 8 heads; as in arXiv 2401.04658",
    ),
)
