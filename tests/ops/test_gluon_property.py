"""Drawn softmax variants: Gluon's kernels, interpreted, against the formula and its gradients."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from attnc.codegen.algebra import analyse
from attnc.codegen.device import DEVICES
from attnc.codegen.gluon.planner import refusal
from attnc.codegen.plan import Request
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.strategies import SINKS, constants, data_masks, mask_leaves, scores, toml_of

# both 64 and 128 columns, whole and not; k and v share their columns
DIMS = ((64, 64), (64, 40), (16, 64), (80, 80), (128, 128), (96, 72))


@st.composite
def gluon_variants(draw: st.DrawFn) -> Variant:
    """What the backend takes: any mask, score and sink, no value of its own."""
    leaves = [draw(mask_leaves()) for _ in range(draw(st.integers(1, 3)))]
    wide = f"window({draw(constants(100, 300))}, {draw(constants(0, 200))})"
    far = f"(i - j > {draw(constants(100, 300))})"
    mask = draw(
        st.sampled_from(
            ["causal", " & ".join(leaves), wide, f"causal & ({wide} | {far})", draw(data_masks())]
        )
    )
    listed = draw(st.sampled_from(["", "", "documents(ids)", "blocks(kept, 128)"]))
    mask = f"({mask}) & {listed}" if listed else mask
    score, sink = draw(scores()), draw(st.sampled_from(SINKS))
    fields = {"feature_map": '"softmax"', "scale": '"rsqrt(d)"', "mask": f'"{mask}"'}
    fields |= {"score": f'"{score}"'} | ({"sink": f'"{sink}"'} if sink else {})
    text = toml_of(fields, f"{score} {sink}", grad=True)
    note(text)
    return loads(text, file="drawn.toml")["drawn"]


def taken(variant: Variant) -> bool:
    asked = Request(variant, DEVICES["h100"], (64, 64), backend="gluon")
    return not refusal(asked, analyse(variant))


def lengths() -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([1, 63, 64, 128, 129]), st.integers(1, 300))


@pytest.mark.timeout(300)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    variant=gluon_variants().filter(taken),
    tq=lengths(),
    tk=lengths(),
    square=st.booleans(),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]),
    dims=st.sampled_from(DIMS),
    dtype=st.sampled_from(["bf16", "fp16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_drawn_variant_is_its_formula_forward_and_backward(
    variant, tq, tk, square, heads, dims, dtype, seed
):
    shape = Shape(1, tq, tq if square else tk, *heads, *dims)
    report = verify(variant, backend="gluon", dtypes=[dtype], shapes=[shape], seed=seed)
    assert report.passed, report.failures
    assert not report.skipped and len(report.rows) >= 5
