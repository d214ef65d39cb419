"""Hypothesis strategies of whole calls: a declaration, ragged sizes, a dtype and tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import note
from hypothesis import strategies as st

from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from tests.strategies import DTYPES, HIGH_DEGREE, declarations


@dataclass(frozen=True)
class Call:
    """One drawn call: a variant, the sizes, the dtype's name and the tensors."""

    variant: Variant
    shape: Shape
    dtype: str
    inputs: Inputs

    def __repr__(self) -> str:
        return f"{self.variant!r}, {self.dtype} {self.shape}"  # no tensors in a failing example


def head_dims(highest: int = 96) -> st.SearchStrategy[int]:
    """16 .. 96, powers of two and others alike."""
    usual = st.sampled_from([dim for dim in (16, 32, 64, 80, 96) if dim <= highest])
    return st.one_of(usual, st.integers(16, highest))


@st.composite
def shapes(
    draw: st.DrawFn, *, tokens: int = 90, highest_dim: int = 96, square: bool = False
) -> Shape:
    """Ragged lengths, TQ like TK or not, grouped heads, strided or not."""
    lengths = st.one_of(st.sampled_from([1, 2, 63, 64, 65]), st.integers(1, tokens))
    tq = draw(lengths)
    tk = tq if square or draw(st.booleans()) else draw(lengths)
    hq, hkv = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)]))
    qk, v = draw(head_dims(highest_dim)), draw(head_dims(highest_dim))
    return Shape(draw(st.integers(1, 2)), tq, tk, hq, hkv, qk, v, draw(st.booleans()))


def dtypes() -> st.SearchStrategy[str]:
    return st.sampled_from(list(DTYPES))


@st.composite
def calls(
    draw: st.DrawFn,
    family: str | None = None,
    *,
    causal: bool = False,
    square: bool = False,
    tokens: int = 90,
    grad: bool = False,
    declared: st.SearchStrategy[str] | None = None,
) -> Call:
    """A variant, or one of those `declared`, with everything it takes to call it on the CPU."""
    text = draw(declarations(family, causal=causal, grad=grad) if declared is None else declared)
    # cubes of 96 channels are 152,096 features: such a state is the planner's to refuse
    high = any(f'"{feature_map}"' in text for feature_map in HIGH_DEGREE)
    shape = draw(shapes(tokens=tokens, highest_dim=20 if high else 96, square=square))
    dtype = draw(dtypes())
    seed = draw(st.integers(0, 2**32 - 1))
    note(f"{text}\n# {dtype} {shape} seed {seed}")
    variant = loads(text, file="drawn.toml")["drawn"]
    generator = torch.Generator().manual_seed(seed)
    inputs = draw_inputs(variant, shape, DTYPES[dtype], generator, torch.device("cpu"))
    return Call(variant, shape, dtype, inputs)
