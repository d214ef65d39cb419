"""Declared convolutions that the tests share, and a second opinion on what they mean."""

from __future__ import annotations

import torch

from attnc.dsl import loads

TEXT = """
[gated]
weight = "w[c, i-j]"
mask = "causal"
skip = "D[c]"
pregate = "a[b,t,c]"
postgate = "g[t,c]"
params.w = { shape = ["c", "T"], grad = true }
params.D = { shape = ["c"], grad = true }
inputs.a = { shape = ["b", "t", "c"], grad = true }
inputs.g = { shape = ["b", "t", "c"], grad = true }

[both_sides]
weight = "w[c, i-j]"
params.w = { shape = ["c", "T"], grad = true }

[past]
weight = "w[c, i-j]"
mask = "(i - j >= 2) & (i - j < 40)"
skip = "D[c]"
postgate = "g[t,c]"
params.w = { shape = ["c", "T"], grad = true }
params.D = { shape = ["c"], grad = true }
inputs.g = { shape = ["b", "t", "c"] }

[around]
weight = "w[c, i-j]"
mask = "window(30, 5)"
skip = "D[c]"
params.w = { shape = ["c", "T"] }
params.D = { shape = ["c"], grad = true }

[sparse]
weight = "w[c, i-j]"
mask = "causal"
transforms = ["smooth(3)", "squash(0.02)", "dropout(0.5)"]
params.w = { shape = ["c", "T"], grad = true }
"""
CONVOLUTIONS = loads(TEXT)
LEARNED = loads("""
[learned]
weight = "w[c, i-j]"
mask = "causal"
skip = "D[c]"
pregate = "a[b,t,c]"
postgate = "g[t,c]"
outer = "F1[z, k1, n1]"
inner = "F2[z, k2, n2]"
params.w = { shape = ["c", "T"], grad = true }
params.D = { shape = ["c"], grad = true }
params.F1 = { shape = ["z", "k1", "n1"], grad = true }
params.F2 = { shape = ["z", "k2", "n2"], grad = true }
inputs.a = { shape = ["b", "t", "c"], grad = true }
inputs.g = { shape = ["b", "t", "c"], grad = true }
""")["learned"]
# the lowest and the highest offset i - j by name; both_sides centres its taps
OFFSETS = {"gated": (0, None), "past": (2, 39), "around": (-5, 30), "both_sides": (None, None)}
OFFSETS["sparse"] = (0, None)


def dense(name: str, v: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The declared sum by one matrix [T, T] a channel, in fp64."""
    wide = {key: x.double() for key, x in tensors.items()}
    taps, tokens = wide["w"], v.shape[1]
    if name == "sparse":
        taps = soft_mean_of_three(taps)
    low, high = OFFSETS[name]
    low = -(taps.shape[1] // 2) if low is None else low
    matrix = torch.zeros(taps.shape[0], tokens, tokens, dtype=torch.float64)
    for tap in range(taps.shape[1]):
        offset = low + tap
        if (high is None or offset <= high) and abs(offset) < tokens:
            ones = torch.diag(torch.ones(tokens - abs(offset), dtype=torch.float64), -offset)
            matrix = matrix + taps[:, tap, None, None] * ones
    u = v.double() * wide.get("a", torch.ones((), dtype=torch.float64))
    z = torch.einsum("cij,bjc->bic", matrix, u)
    z = z + wide["D"] * u if "D" in wide else z
    return z * wide["g"] if "g" in wide else z


def soft_mean_of_three(taps: torch.Tensor) -> torch.Tensor:
    """smooth(3), then squash(0.02), tap by tap."""
    found = torch.zeros_like(taps)
    for tap in range(taps.shape[1]):
        mean = taps[:, max(0, tap - 1) : tap + 2].sum(1) / 3
        found[:, tap] = torch.where(mean.abs() > 0.02, mean - 0.02 * mean.sign(), 0 * mean)
    return found
