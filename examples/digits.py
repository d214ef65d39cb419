"""Train a small long-convolution classifier on handwritten digits, one pixel a token.

    python examples/digits.py --epochs 20
    python examples/digits.py --epochs 20 --compare     # beside the eager convolution
    python examples/digits.py --epochs 1 --images 32 --batch 8 --width 2 --layers 1   # on a CPU

An image of 8 x 8 pixels is a sequence of 64 tokens. Each layer filters every channel by as many
taps as there are tokens, squashed so that they stay few. `--compare` trains the same model again on
the same batches with the eager reference in fp32, and prints both accuracies. The data are
scikit-learn's `load_digits`, which come inside that package. On a CPU the kernels are interpreted:
that shows that they train, on few images, in seconds a step.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, glu

import attnc
from attnc.dsl import Convolution, Param, c, i, j
from attnc.ops.reference.convolution import convolve

PIXELS, CLASSES, HELD_OUT = 64, 10, 360
LONG = Convolution(
    "long", weight=Param("w", shape="c,T", grad=True)[c, i - j], mask="causal",
    skip=Param("D", shape="c", grad=True)[c], transforms=["squash(0.001)"],
)  # fmt: skip


class LongConv(nn.Module):
    """A causal convolution a channel, then a gated projection."""

    def __init__(self, width: int, *, eager: bool) -> None:
        super().__init__()
        self.eager, self.op = eager, attnc.compile(LONG)
        # taps begin small and fade, so that the first steps see few tokens
        fade = torch.exp(-4 * torch.arange(PIXELS) / PIXELS)
        self.w = nn.Parameter(torch.randn(width, PIXELS) * 0.1 * fade)
        self.D = nn.Parameter(torch.randn(width))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        v, taps = self.norm(x), {"w": self.w, "D": self.D}
        if self.eager:
            o = convolve(LONG, v, taps, dtype=torch.float32)
        else:
            narrow = torch.bfloat16 if x.is_cuda else x.dtype
            o = self.op(v.to(narrow), training=self.training, **taps).to(x.dtype)
        return x + glu(self.out(gelu(o)), -1)


class Classifier(nn.Module):
    """Pixels one after the other, layers of long convolutions, the mean over tokens."""

    def __init__(self, width: int, layers: int, *, eager: bool) -> None:
        super().__init__()
        self.into = nn.Linear(1, width)
        self.layers = nn.Sequential(*(LongConv(width, eager=eager) for _ in range(layers)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.into(pixels[..., None])).mean(1))
        return logits


def digits(device: str) -> tuple[Tensor, Tensor]:
    """Pixels [N, 64] around 0, and labels [N], in an order of their own."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise  # it is there, and cannot be imported: its own words say why
        sys.exit(
            "this example trains on scikit-learn's digits, and scikit-learn is not installed\n"
            "  pip install scikit-learn, or pip install 'attnc[examples]'"
        )
    data, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data, dtype=torch.float32)[order] / 8 - 1
    return pixels.to(device), torch.tensor(labels)[order].to(device)


def train(
    pixels: Tensor, labels: Tensor, options: argparse.Namespace, *, eager: bool
) -> tuple[float, float]:
    """Accuracy on held-out images, and the last epoch's loss."""
    torch.manual_seed(0)
    model = Classifier(options.width, options.layers, eager=eager).to(pixels.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    images = min(options.images, len(labels) - HELD_OUT)
    steps = options.epochs * (images // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    name, loss = "eager" if eager else "attnc", torch.zeros(())
    for epoch in range(options.epochs):
        model.train()
        order = torch.randperm(images, generator=generator) + HELD_OUT
        start, total = time.monotonic(), 0.0
        for batch in order.split(options.batch)[: steps // options.epochs]:
            loss = cross_entropy(model(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        mean = total / (steps // options.epochs)
        print(
            f"{name} epoch {epoch}: loss {mean:.4f}, {time.monotonic() - start:.1f} s", flush=True
        )
    model.eval()
    with torch.no_grad():
        right = model(pixels[:HELD_OUT]).argmax(-1) == labels[:HELD_OUT]
    return float(right.float().mean()), mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1437)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, and training takes one at least")
    if not 1 <= options.batch <= options.images:
        parser.error(f"--batch is {options.batch}, and there are {options.images} images")
    pixels, labels = digits(options.device)
    accuracy, loss = train(pixels, labels, options, eager=False)
    print(f"attnc: {accuracy:.1%} of {HELD_OUT} held-out digits, loss {loss:.4f}")
    if options.compare:
        theirs, their_loss = train(pixels, labels, options, eager=True)
        print(f"eager: {theirs:.1%} of {HELD_OUT} held-out digits, loss {their_loss:.4f}")


if __name__ == "__main__":
    main()
