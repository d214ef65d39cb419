"""Packed sequences, compiled: the bits of calls of each alone, and the formula's values.

Small shapes: lengths of no, one and several segments, empty ones at either end and in the middle.
"""

from __future__ import annotations

import pytest
import torch

from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.tuning import tuned
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import DTYPES, verify
from tests.packed import hold_bits, packed_inputs, starts

pytestmark = pytest.mark.gpu
NAMES = ("lightning", "based", "mamba2", "gla")
LENGTHS = (0, 63, 1, 130, 0, 2500, 700, 0)
CUDA = torch.device("cuda")


def sizes(name: str, tokens: int = 0, sequences: int = 0) -> Shape:
    dims = {"based": (16, 64), "mamba2": (128, 64)}.get(name, (64, 64))
    return Shape(1, tokens, tokens, 4, 2, *dims, sequences=sequences)


def tiles(op: Op, name: str, dtype: str, **options: bool) -> list[tuple[object, ...]]:
    """What of a plan decides bits: the tiles of every pass."""
    shape = sizes(name)
    plan = op.plan(dim=(shape.qk, shape.v), dtype=dtype, form="chunked", **options)
    return [(step.kernel.name, step.tiles, step.num_warps) for step in plan.passes]


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(shipped()[name]) for name in NAMES}


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning knows a variant and the packed one apart, and may choose other tiles for each."""
    monkeypatch.setattr(tuned, "_answers", lambda model: {})


@pytest.mark.parametrize("state", [False, True], ids=["from_zero", "with_states"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_are_bit_for_bit_what_they_are_alone(name, dtype, state, ops):
    op = ops[name]
    for backward in (False, True):
        options = {"stateful": state, "backward": backward}
        packed = tiles(op.over_sequences(), name, dtype, **options)
        assert packed == tiles(op, name, dtype, **options), "another plan has other bits"
    inputs = packed_inputs(op, LENGTHS, sizes(name), DTYPES[dtype], CUDA)
    hold_bits(op, LENGTHS, inputs, "chunked", state=state)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_are_their_formula_in_every_form(name, dtype):
    """Outputs, states and gradients, by the design's criterion."""
    shapes = [sizes(name, tokens, sequences=6) for tokens in (200, 3000)]
    report = verify(shipped()[name], device="cuda", dtypes=[dtype], shapes=shapes)
    assert report.passed, str(report)
    assert {"chunked form", "state returned"} <= {row.what for row in report.rows}


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_call_replays_with_other_lengths(name, ops):
    lengths, others = (700, 0, 300, 24), (1, 1000, 23, 0)
    inputs = packed_inputs(ops[name], lengths, sizes(name), torch.bfloat16, CUDA)
    packed, cu = ops[name].over_sequences(), inputs.tensors["cu_seqlens_k"]
    packed(*inputs.qkv, **inputs.tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = packed(*inputs.qkv, **inputs.tensors)
    cu.copy_(starts(others))
    graph.replay()
    assert torch.equal(out, packed(*inputs.qkv, **inputs.tensors))
