"""Random inputs of a variant: what `verify` and the property tests call an op with.

Draws are fresh each time and such that a wrong kernel shows: scores near 1 in size, so that no
softmax saturates; decays that neither vanish nor forget at once; normalisers away from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from attnc.dsl.expr import Call, Expr, Name, Ref, walk
from attnc.dsl.mask_data import CU_SEQLENS
from attnc.dsl.variant import Declared, Variant
from attnc.ops.reference.evaluate import Scope, evaluate
from attnc.ops.reference.run import Run
from attnc.ops.verification.draw_scaled import draw_scaled

_GRID = torch.linspace(-8, 8, 321, dtype=torch.float64)  # where maps and weights are looked at


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one call, whether its tensors are strided views, and of how many sequences."""

    batch: int
    tq: int
    tk: int
    hq: int
    hkv: int
    qk: int
    v: int
    strided: bool = False
    sequences: int = 0

    def __str__(self) -> str:
        tokens = f"T={self.tq}" if self.tq == self.tk else f"TQ={self.tq} TK={self.tk}"
        heads = f"H={self.hq}" if self.hq == self.hkv else f"H={self.hq}/{self.hkv}"
        dims = f"D={self.qk}" if self.qk == self.v else f"D={self.qk},{self.v}"
        packed = f" in {self.sequences} sequences" if self.sequences else ""
        strided = " strided" if self.strided else ""
        return f"B={self.batch} {tokens} {heads} {dims}{strided}{packed}"

    def axis(self, letter: str) -> int:
        """The length of one axis of a declared tensor; i/64 counts blocks of 64 queries."""
        letter, _, size = letter.partition("/")
        lengths = {"b": self.batch, "h": self.hq, "hkv": self.hkv, "i": self.tq}
        lengths |= {"j": self.tk, "t": self.tk, "k": self.qk, "c": self.v}
        lengths |= {"n": self.sequences + 1}
        return -(-lengths[letter] // int(size or 1))

    def lengths(self, axes: tuple[str, ...]) -> list[int]:
        """The shape of a declared tensor; one without tokens has an entry for each sequence."""
        apart = self.sequences > 0 and not {"t", "i", "j"} & set(axes)
        return [self.sequences if apart and a == "b" else self.axis(a) for a in axes]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors of one call."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: dict[str, Tensor]

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, as an op takes them."""
        return self.q, self.k, self.v

    def tokens(self, variant: Variant, part: slice) -> Inputs:
        """The same call on some of the tokens."""
        declared = (*variant.params, *variant.inputs)
        cut = {
            d.name: self.tensors[d.name][
                tuple(part if axis in {"t", "i", "j"} else slice(None) for axis in d.shape)
            ]
            for d in declared
        }
        return Inputs(self.q[:, part], self.k[:, part], self.v[:, part], cut)


def draw_inputs(
    variant: Variant,
    shape: Shape,
    dtype: torch.dtype,
    generator: torch.Generator,
    device: torch.device,
) -> Inputs:
    """Random q, k, v and every declared param and input of a variant."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float32)

    q = normal(shape.batch, shape.tq, shape.hq, shape.qk)
    k = normal(shape.batch, shape.tk, shape.hkv, shape.qk)
    v = normal(shape.batch, shape.tk, shape.hkv, shape.v)
    weights = variant.terms or (variant,)
    scales = [w.scale.value(shape.qk) for w in weights if w.feature_map.phi is None]
    if scales:
        # scale * q.k then has a standard deviation of 1, whatever the scale
        k = k / max(1e-6, *(abs(scale) * sqrt(shape.qk) for scale in scales))
    vanishes = variant.normalize == "sum" and any(map(_may_vanish, weights))
    # a sum of weights that comes near 0 survives no arithmetic: of both signs, or of s**2
    if vanishes or any(map(_of_positive, weights)):
        q, k = q.abs(), k.abs()
    if variant.normalize == "none":
        v = v / sqrt(shape.tk)  # or fp16 overflows at long lengths
    tensors = _draw_tensors(variant, shape, generator, device)
    if variant.scaled:
        drawn = [draw_scaled(x, generator) for x in (q, k, v)]
        q, k, v = (x for x, _ in drawn)
        names = ("q_scale", "k_scale", "v_scale")
        tensors |= {name: x.to(device) for name, (_, x) in zip(names, drawn, strict=True)}
    q, k, v = (x.to(device=device, dtype=dtype) for x in (q, k, v))
    if shape.strided:
        q, k, v = _strided(q), _padded(k), _strided(v)
    inputs = Inputs(q, k, v, tensors)
    return _with_decay(variant, shape, inputs, generator)


def _may_vanish(variant: Variant) -> bool:
    """Whether a weight, or a channel of phi, is negative somewhere, or a polynomial of s 0."""
    if variant.family == "softmax":
        return False
    feature = variant.feature_map
    if feature.weight is not None:
        return bool((_values(feature.weight, "s") <= 0).any())
    if feature.phi is not None:
        return bool((_values(feature.phi, "x") < 0).any())
    powers = enumerate(variant.feature_map.coefficients)
    values = sum((float(c) * _GRID**m for m, c in powers), torch.zeros_like(_GRID))
    return bool((values <= 0).any())


def _of_positive(variant: Variant) -> bool:
    """Whether phi has no value at some negative channel, as log and sqrt have none."""
    phi = variant.feature_map.phi
    return phi is not None and bool(_values(phi, "x").isnan().any())


def _values(expression: Expr, name: str) -> Tensor:
    scope = Scope({name: _GRID}, lambda ref: _GRID, torch.float64, _GRID.device)
    return evaluate(expression, scope)


def _strided(x: Tensor) -> Tensor:
    """The same values laid out [B, H, T, D], as models that transpose hand them over."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _padded(x: Tensor) -> Tensor:
    """The same values as a slice of wider rows, the rest of them NaN."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 8), float("nan"), dtype=x.dtype)
    wide = wide.to(x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def _draw_tensors(
    variant: Variant, shape: Shape, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    scores = [part.score for part in (variant, *variant.terms)]
    positive = any(map(_takes_logarithms, (variant.value, *scores)))
    factors = [names_in(term.factor) for term in variant.terms if term.factor is not None]
    drawn: dict[str, Tensor] = {}
    for declared in (*variant.params, *variant.inputs):
        sizes = shape.lengths(declared.shape)
        if declared.name in CU_SEQLENS:
            # one tensor where there are as many queries as keys: forms that fold tokens want it
            same = drawn.get("cu_seqlens_k") if shape.tq == shape.tk else None
            starts = _starts(declared.name, shape, generator) if same is None else same
            drawn[declared.name] = starts.to(device)
            continue
        if declared.name in variant.documents:
            # about three documents of a sequence, of any lengths
            starts = torch.rand(sizes, generator=generator) < 3 / max(3, sizes[-1])
            value = starts.cumsum(-1).to(torch.float32)
        elif declared.shape and "/" in declared.shape[-1]:
            # half of the blocks
            value = torch.randint(0, 2, sizes, generator=generator).to(torch.float32)
        elif declared.name in variant.mask_tensors:
            # bounds of the mask, from no key to all of them
            value = torch.randint(0, shape.tk + 1, sizes, generator=generator).to(torch.float32)
        elif declared.kind == "param" or positive or any(declared.name in f for f in factors):
            value = 0.02 + 0.5 * torch.rand(sizes, generator=generator)
        else:
            value = 0.5 * torch.randn(sizes, generator=generator)
        drawn[declared.name] = value.to(device)
    return drawn


def _starts(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Where sequences of any lengths start, one of them without tokens."""
    tokens = shape.tq if name == "cu_seqlens_q" else shape.tk
    cuts = torch.randint(0, tokens + 1, (shape.sequences - 1,), generator=generator).sort().values
    if shape.sequences > 3:
        cuts[2] = cuts[1]
    ends = [torch.zeros(1), cuts, torch.full((1,), tokens)]
    return torch.cat(ends).to(torch.int32)


# what a log decay's tensors may be drawn as, from u in (0.002, 0.4) spread evenly in its logarithm
_DECAY_DRAWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda u: u,
    lambda u: -u,
    lambda u: 1 - u,
    lambda u: u - 1,
    lambda u: -torch.log(u),
    lambda u: torch.log(u),
)


def _with_decay(
    variant: Variant, shape: Shape, inputs: Inputs, generator: torch.Generator
) -> Inputs:
    """Redraw the tensors of the log decay so that it is negative, and about -0.1 a token."""
    log_decay = variant.log_decay
    if log_decay is None:
        return inputs
    declared = {d.name: d for d in (*variant.params, *variant.inputs)}
    used = [declared[name] for name in sorted(names_in(log_decay) & set(declared))]
    best, best_distance = inputs, float("inf")
    uniform = {d.name: _log_uniform(d, shape, generator) for d in used}
    for draw in _DECAY_DRAWS if used else ():
        redrawn = {name: draw(u).to(inputs.q.device) for name, u in uniform.items()}
        candidate = Inputs(*inputs.qkv, {**inputs.tensors, **redrawn})
        run = Run(variant, *candidate.qkv, candidate.tensors, torch.float64, None, None)
        rates = run.log_decays()
        if rates is None or not bool((rates.isfinite() & (rates <= 0)).all()):
            continue
        distance = abs(float(rates.mean()) + 0.1)
        if distance < best_distance:
            best, best_distance = candidate, distance
    return best


def _log_uniform(declared: Declared, shape: Shape, generator: torch.Generator) -> Tensor:
    sizes = shape.lengths(declared.shape)
    return 0.002 * 200 ** torch.rand(sizes, generator=generator)


def names_in(expr: Expr) -> set[str]:
    """Every name of an expression, of index letters and tensors alike."""
    nodes = walk(expr)
    names = {node.id for node in nodes if isinstance(node, Name)}
    return names | {node.name for node in nodes if isinstance(node, Ref)}


def _takes_logarithms(expr: Expr | None) -> bool:
    nodes = [] if expr is None else walk(expr)
    return any(isinstance(n, Call) and n.function in {"log", "log1p", "sqrt"} for n in nodes)
