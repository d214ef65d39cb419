"""Hypothesis strategies of sums of terms, drawn as the TOML that a user would write."""

from __future__ import annotations

import re

import torch
from hypothesis import note
from hypothesis import strategies as st

from attnc.dsl.toml_file import loads
from attnc.ops.verification.draw import draw_inputs
from tests.drawn_calls import Call, shapes
from tests.strategies import DTYPES, INPUTS, NONNEGATIVE, PARAMS, SINKS, VALUES, data_masks, scores

FACTORS = ("", "", "0.25", "exp(bias[h])", "sigmoid(shared[hkv])", "gain", "0.1 + slope[h]**2")
# degrees whose weights leave fp16 at the scores that are drawn
MAPS = tuple(feature_map for feature_map in NONNEGATIVE if feature_map != "exp(x)")


@st.composite
def declarations(draw: st.DrawFn, *, grad: bool = False, folds: bool = False) -> str:
    """The TOML of a sum of two or three terms named `drawn`; one that `folds` has a far term."""
    terms = [draw(_terms()) for _ in range(draw(st.integers(2, 3)))]
    if folds:
        reach = draw(st.sampled_from([-2, 0, 1, 9, 16, 20]))
        weight = draw(st.sampled_from(MAPS))
        terms[0] = {"scale": "0.3", "feature_map": weight, "mask": f"i - j >= {reach}"}
    values = [""] if folds else VALUES
    shared = {"value": draw(st.sampled_from(values)), "sink": draw(st.sampled_from(SINKS))}
    shared = {key: text for key, text in shared.items() if text}
    lines = ["[drawn]", *(f'{key} = "{text}"' for key, text in shared.items())]
    read = " ".join([*shared.values(), *(text for term in terms for text in term.values())])
    for kind, declared in (("params", PARAMS), ("inputs", {**INPUTS, "n": ("b",)})):
        for name, axes in declared.items():
            if re.search(rf"\b{name}\b" if not axes else rf"\b{name}\[", read):
                listed = ", ".join(f'"{axis}"' for axis in axes)
                wanted = ", grad = true" if grad and name != "n" else ""
                lines.append(f"{kind}.{name} = {{ shape = [{listed}]{wanted} }}")
    for term in terms:
        lines += ["[[drawn.terms]]", *(f'{key} = "{text}"' for key, text in term.items())]
    return "\n".join(lines)


@st.composite
def _terms(draw: st.DrawFn) -> dict[str, str]:
    term = {"scale": draw(st.sampled_from(["rsqrt(d)", "0.125", "0.3"]))}
    if draw(st.booleans()):
        term |= {"feature_map": "softmax", "score": draw(scores())}
    else:
        term["feature_map"] = draw(st.sampled_from(MAPS))
    term["mask"] = draw(
        st.one_of(st.just("causal & window(20)"), st.just("i - j > 20"), data_masks())
    )
    factor = draw(st.sampled_from(FACTORS))
    return {**term, "factor": factor} if factor else term


@st.composite
def calls(draw: st.DrawFn, *, tokens: int = 60, grad: bool = False, folds: bool = False) -> Call:
    """A sum of terms with everything it takes to call it on the CPU."""
    text = draw(declarations(grad=grad, folds=folds))
    shape = draw(shapes(tokens=tokens, highest_dim=16 if folds else 48, square=folds))
    dtype = draw(st.sampled_from(list(DTYPES)))
    seed = draw(st.integers(0, 2**32 - 1))
    note(f"{text}\n# {dtype} {shape} seed {seed}")
    variant = loads(text, file="drawn.toml")["drawn"]
    generator = torch.Generator().manual_seed(seed)
    inputs = draw_inputs(variant, shape, DTYPES[dtype], generator, torch.device("cpu"))
    return Call(variant, shape, dtype, inputs)
