"""Train a small byte-level language model whose attention is any declared variant.

    python examples/train_lm.py --variants flash --steps 500
    python examples/train_lm.py --variants flash_window,based --steps 500     # layers take turns
    python examples/train_lm.py --variants my.toml:mine --steps 20 --compare

The text is the reference manual that ships inside Python. `--compare` trains the same model again
with the eager reference in fp32, on the same batches, and prints how far apart the losses end.
Writes losses to train_lm.json and, where matplotlib is installed, their curve to train_lm.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import attnc
from attnc.dsl.variant import Variant
from attnc.ops.reference.attend import attend
from attnc.ops.shipped import attentions

HEADS, WIDTH = 4, 256
TEXT = "\n\n".join(topics[name] for name in sorted(topics)).encode()


def variant_named(text: str) -> Variant:
    """A shipped variant of q, k and v, or FILE:NAME."""
    file, _, name = text.rpartition(":")
    known = attnc.load(file) if file else attentions()
    if name not in known:
        sys.exit(f"no variant {name!r}; there are {', '.join(known)}")
    return known[name]


class Attention(nn.Module):
    """One layer's attention: projections, then the variant's op or its eager reference."""

    def __init__(self, variant: Variant, *, eager: bool) -> None:
        super().__init__()
        self.variant, self.eager = variant, eager
        self.op = attnc.compile(variant)
        qk, v = (variant.dim.qk, variant.dim.v) if variant.dim else (64, 64)
        self.sizes = (HEADS * qk, HEADS * qk, HEADS * v)
        self.into = nn.Linear(WIDTH, sum(self.sizes), bias=False)
        self.out = nn.Linear(HEADS * v, WIDTH, bias=False)
        # a learned param starts as ALiBi's and Lightning's slopes do
        start = torch.exp2(-8 * torch.arange(1, HEADS + 1) / HEADS)
        for declared in variant.params:
            if declared.shape not in {(), ("h",)}:
                sys.exit(f"param {declared.name!r} of {variant.name!r} is not one number a head")
            value = start.clone() if declared.shape else torch.tensor(0.5)
            setattr(self, declared.name, nn.Parameter(value, requires_grad=declared.grad))
        if variant.inputs:
            sys.exit(f"{variant.name!r} takes inputs a token; this example has none to give")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)) for part in self.into(x).split(self.sizes, dim=-1)
        )
        params = {d.name: getattr(self, d.name) for d in self.variant.params}
        if self.eager:
            o = attend(self.variant, q, k, v, params, dtype=torch.float32).out
        else:
            narrow = torch.bfloat16 if x.is_cuda else x.dtype
            o = self.op(q.to(narrow), k.to(narrow), v.to(narrow), **params).to(x.dtype)
        return self.out(o.flatten(2))


class Layer(nn.Module):
    """Attention, then a gated-free MLP, each behind a norm."""

    def __init__(self, variant: Variant, *, eager: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = Attention(variant, eager=eager)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Model(nn.Module):
    """Bytes and positions embedded, layers that take the variants in turn, a head over bytes."""

    def __init__(self, variants: list[Variant], layers: int, tokens: int, *, eager: bool) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.positions = nn.Embedding(tokens, WIDTH)
        self.layers = nn.Sequential(
            *(Layer(variants[n % len(variants)], eager=eager) for n in range(layers))
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        x = self.bytes(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.norm(self.layers(x)))


def batches(size: int, tokens: int, device: str) -> Iterator[Tensor]:
    """Random windows of the text, the same ones every time."""
    data = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(data) - tokens - 1, (size,), generator=generator)
        yield torch.stack([data[s : s + tokens + 1] for s in starts]).to(device)


def train(options: argparse.Namespace, variants: list[Variant], *, eager: bool) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    model = Model(variants, options.layers, options.tokens, eager=eager).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    warmup: Callable[[int], float] = lambda step: min(1.0, (step + 1) / 50)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)
    data = batches(options.batch, options.tokens, options.device)
    losses: list[float] = []
    label = "eager reference, fp32" if eager else ", ".join(v.name for v in variants)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task(label, total=options.steps, loss=math.log(256))
        for _ in range(options.steps):
            text = next(data)
            loss = nn.functional.cross_entropy(
                model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(task, advance=1, loss=losses[-1])
    return losses


def final(losses: list[float]) -> float:
    """The mean of the last tenth: one batch is noisy."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The curves as a picture."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no picture: pip install matplotlib")
        return
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for label, losses in curves.items():
        axes.plot(losses, label=f"{label}: {final(losses):.3f}", linewidth=1)
    axes.set(xlabel="step", ylabel="cross entropy a byte", title="examples/train_lm.py")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"the curve is in {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="flash", help="names or FILE:NAME, comma separated")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compare", action="store_true", help="train the eager reference too")
    parser.add_argument("--out", type=Path, default=Path("train_lm"))
    options = parser.parse_args()
    variants = [variant_named(name) for name in options.variants.split(",")]
    curves = {"attnc": train(options, variants, eager=False)}
    if options.compare:
        curves["eager reference, fp32"] = train(options, variants, eager=True)
        ours, theirs = (final(losses) for losses in curves.values())
        print(f"attnc {ours:.4f}, eager {theirs:.4f}: {abs(ours - theirs) / theirs:.2%} apart")
    facts = {"variants": options.variants, "steps": options.steps, "losses": curves}
    options.out.with_suffix(".json").write_text(json.dumps(facts))
    draw(curves, options.out.with_suffix(".svg"))
    loss = final(curves["attnc"])
    print(f"{options.variants}: loss {loss:.4f} over the last tenth of {options.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
