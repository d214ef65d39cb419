"""Generate tokens with a Based model and with a transformer of the same size, random weights both.

    python examples/generate.py                          # 1.3B parameters, a GPU
    python examples/generate.py --tiny --check           # seconds, a CPU

The architecture is that of Based (Arora et al. 2024, arXiv 2402.18668) at 1.3B: 36 layers, of which
seven are Taylor attention, seven attention in a window, and the rest gated short convolutions. The
paper claims 24 times a FlashAttention-2 transformer's tokens a second, at batch 128 and 1,024
generated tokens; this prints what it measures. `--check` holds prefill and steps against one long
prefill. Results go to generate.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention, silu

import attnc
from attnc.ops.shipped import shipped

# layers that are Taylor attention at 36 layers; each is followed by one with a window
TAYLOR = (1, 6, 11, 16, 21, 27, 33)


@dataclass(frozen=True)
class Size:
    """Of a model: `width` channels, split over `heads`; Taylor attention in the layers `taylor`."""

    layers: int = 36
    width: int = 1792
    heads: int = 16
    vocabulary: int = 50_257
    taylor: tuple[int, ...] = TAYLOR


TINY = Size(3, 64, 2, 100, (0,))


class Mixer(nn.Module):
    """What carries something from token to token: `begin` makes it, both others advance it."""

    def begin(self, batch: int, capacity: int) -> None:
        raise NotImplementedError

    def prefill(self, x: Tensor) -> Tensor:
        """x [B, T, width], the first tokens."""
        raise NotImplementedError

    def step(self, x: Tensor) -> Tensor:
        """x [B, 1, width], one token after those before."""
        raise NotImplementedError


class ShortConv(Mixer):
    """Three taps a channel and SiLU, gated by the other half of the projection."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.into = nn.Linear(size.width, 2 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.taps = nn.Parameter(torch.randn(3, size.width) / 3)

    def begin(self, batch: int, capacity: int) -> None:
        self.past = self.taps.new_zeros(batch, 2, self.taps.shape[1])

    def prefill(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, -1)
        padded = pad(u, (0, 0, 2, 0))
        self.past.copy_(padded[:, -2:])
        mixed = sum(padded[:, n : n + u.shape[1]] * self.taps[n] for n in range(3))
        return self.out(silu(mixed) * gate)

    def step(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, -1)
        window = torch.cat([self.past, u], 1)
        self.past.copy_(window[:, 1:])
        return self.out(silu((window * self.taps).sum(1, keepdim=True)) * gate)


class Attention(Mixer):
    """Projections around a declared variant: its prefill and its step."""

    def __init__(self, size: Size, name: str) -> None:
        super().__init__()
        self.op, self.heads = attnc.compile(shipped()[name]), size.heads
        v = size.width // size.heads
        qk = 16 if name == "based" else v
        self.dims = (qk, v)
        self.cached = name == "flash"
        self.sizes = (size.heads * qk, size.heads * qk, size.heads * v)
        self.into = nn.Linear(size.width, sum(self.sizes), bias=False)
        self.out = nn.Linear(size.heads * v, size.width, bias=False)

    def begin(self, batch: int, capacity: int) -> None:
        weight = self.into.weight
        more = {"capacity": capacity} if self.cached else {}
        self.state = self.op.init_state(
            batch, self.heads, dim=self.dims, dtype=weight.dtype, device=weight.device, **more
        )

    def split(self, x: Tensor) -> list[Tensor]:
        parts = self.into(x).split(self.sizes, -1)
        return [part.unflatten(-1, (self.heads, -1)) for part in parts]

    def prefill(self, x: Tensor) -> Tensor:
        o, self.state = self.op.prefill(*self.split(x), self.state)
        return self.out(o.flatten(2))

    def step(self, x: Tensor) -> Tensor:
        o, self.state = self.op.step(*self.split(x), self.state)
        return self.out(o.flatten(2))


class TorchAttention(Attention):
    """The same layer by PyTorch's own attention over a cache of fixed size."""

    def begin(self, batch: int, capacity: int) -> None:
        weight = self.into.weight
        shape = (batch, self.heads, capacity, self.dims[1])
        self.keys, self.values = weight.new_zeros(shape), weight.new_zeros(shape)
        self.length = 0

    def append(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.transpose(1, 2) for part in self.split(x))
        new = slice(self.length, self.length + x.shape[1])
        self.keys[:, :, new], self.values[:, :, new] = k, v
        self.length = new.stop
        return q, self.keys[:, :, : new.stop], self.values[:, :, : new.stop]

    def prefill(self, x: Tensor) -> Tensor:
        o = scaled_dot_product_attention(*self.append(x), is_causal=True)
        return self.out(o.transpose(1, 2).flatten(2))

    def step(self, x: Tensor) -> Tensor:
        o = scaled_dot_product_attention(*self.append(x))
        return self.out(o.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A mixer, then a gated MLP, each behind a norm."""

    def __init__(self, size: Size, mixer: Mixer) -> None:
        super().__init__()
        self.mixer, self.width = mixer, size.width
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(2 * size.width, size.width, bias=False)

    def forward(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + mix(rms_norm(x, (self.width,)))
        u, gate = self.up(rms_norm(x, (self.width,))).chunk(2, -1)
        return x + self.down(silu(gate) * u)


class Model(nn.Module):
    """Token ids to the next token's id, greedily; `kind` is based, flash or torch."""

    def __init__(self, size: Size, kind: str) -> None:
        super().__init__()
        self.size, self.kind = size, kind
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Layer(size, self._mixer(n)) for n in range(size.layers))

    def _mixer(self, n: int) -> Mixer:
        if self.kind == "torch":
            return TorchAttention(self.size, "flash")
        if self.kind == "flash":
            return Attention(self.size, "flash")
        if n in self.size.taylor:
            return Attention(self.size, "based")
        if n - 1 in self.size.taylor:
            return Attention(self.size, "flash_window")
        return ShortConv(self.size)

    def begin(self, batch: int, capacity: int) -> None:
        for layer in self.layers:
            layer.mixer.begin(batch, capacity)

    def logits(self, text: Tensor, *, step: bool) -> Tensor:
        """[B, vocabulary] after the last of text [B, T]."""
        x = self.words(text)
        for layer in self.layers:
            x = layer(x, layer.mixer.step if step else layer.mixer.prefill)
        return rms_norm(x[:, -1], (self.size.width,)) @ self.words.weight.T


def steps(model: Model, text: Tensor, count: int) -> float:
    """Seconds for `count` steps from text [B, 1]: one graph, replayed, where the step allows it."""
    once = lambda: text.copy_(model.logits(text, step=True).argmax(-1, keepdim=True))  # noqa: E731
    if not text.is_cuda or model.kind == "torch":
        once()
        start = clock(text)
        for _ in range(count - 1):
            once()
        return (clock(text) - start) * count / max(1, count - 1)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    start = clock(text)
    for _ in range(count - 1):
        graph.replay()
    return (clock(text) - start) * count / max(1, count - 1)


def clock(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def generate(model: Model, batch: int, prompt: int, count: int) -> dict[str, float]:
    """Prefill a random prompt, then generate; seconds and tokens a second."""
    weight = model.words.weight
    text = torch.randint(model.size.vocabulary, (batch, prompt), device=weight.device)
    for warm in (True, False):
        model.begin(batch, prompt + count + 1)
        start = clock(text)
        token = model.logits(text, step=False).argmax(-1, keepdim=True)
        seconds = clock(text) - start
        if warm:
            # compiles what a prompt and a step want
            model.logits(token, step=True)
    decode = steps(model, token, count)
    return {
        "prefill_s": round(seconds, 4), "decode_s": round(decode, 4),
        "decode_tokens_s": round(batch * count / decode, 1),
        "tokens_s": round(batch * count / (decode + seconds), 1),
    }  # fmt: skip


def check(model: Model) -> float:
    """The largest difference of logits: a prefill and steps against one long prefill."""
    weight = model.words.weight
    text = torch.randint(model.size.vocabulary, (2, 37), device=weight.device)
    model.begin(2, 40)
    whole = model.logits(text, step=False)
    model.begin(2, 40)
    model.logits(text[:, :30], step=False)
    for t in range(30, 37):
        last = model.logits(text[:, t : t + 1], step=True)
    return float((last - whole).abs().max() / whole.abs().max())


def show(rows: list[dict[str, object]]) -> None:
    table = Table("model", "prompt", "prefill, s", "decode, s", "tokens/s", "of the best other")
    for row in rows:
        if "problem" in row:
            table.add_row(str(row["model"]), str(row["prompt"]), str(row["problem"]))
            continue
        others = [
            float(str(other["decode_tokens_s"]))
            for other in rows
            if other["prompt"] == row["prompt"]
            and other["model"] != "based"
            and "problem" not in other
        ]
        own = float(str(row["decode_tokens_s"]))
        ratio = f"{own / max(others):.2f}x" if others else "-"
        shown = (str(row[name]) for name in ("prompt", "prefill_s", "decode_s"))
        table.add_row(str(row["model"]), *shown, f"{own:,.0f}", ratio)
    Console().print(table)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=1024, help="to generate")
    parser.add_argument("--models", nargs="*", default=["based", "flash", "torch"])
    parser.add_argument("--tiny", action="store_true", help="three layers, for a CPU")
    parser.add_argument("--check", action="store_true", help="hold steps against a prefill")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("generate.json"))
    options = parser.parse_args(arguments)
    size = TINY if options.tiny else Size()
    if options.tiny:
        options.batch, options.prompts, options.tokens = 2, [20], 3
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    rows: list[dict[str, object]] = []
    for kind in options.models:
        torch.manual_seed(0)
        with torch.device(options.device):
            model = Model(size, kind).to(dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        facts = {"model": kind, "parameters": sum(p.numel() for p in model.parameters())}
        print(f"{kind}: {facts['parameters'] / 1e9:.2f}B parameters", flush=True)
        if options.check:
            apart = check(model)
            print(f"{kind}: steps and one prefill are {apart:.1e} of the logits apart")
            if apart > (0.05 if dtype == torch.bfloat16 else 1e-4):
                return 1
        for prompt in options.prompts:
            row = facts | {"batch": options.batch, "prompt": prompt, "tokens": options.tokens}
            try:
                row |= generate(model, options.batch, prompt, options.tokens)
            except torch.OutOfMemoryError:
                row["problem"] = "out of memory"
            rows.append(row)
        del model
        if options.device == "cuda":
            torch.cuda.empty_cache()
    show(rows)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
