"""Slips in the calls that begin or take a state: what is said, and nothing out of the inside."""

from __future__ import annotations

import re

import pytest
import torch

from attnc.dsl import loads
from attnc.errors import InputError
from attnc.ops.op import compile as compile_op

TEXT = """
[sums]
feature_map = "elu(x) + 1"
scale = 0.5
mask = "causal"
normalize = "sum"

[filter]
weight = "w[c, i-j]"
mask = "causal"
params.w = { shape = ["c", "T"] }
"""
OPS = {name: compile_op(variant) for name, variant in loads(TEXT).items()}
CPU = {"device": "cpu", "dtype": torch.float32}
X = torch.zeros(1, 4, 2, 16)
PACKED = "a state of decode hands it over by .packed()"


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((0, 2), {"dim": 16}, "no state for batch = 0"),
        ((-1, 2), {"dim": 16}, "no state for batch = -1"),
        (("1", 2), {"dim": 16}, "no state for batch = '1'"),
        ((1, 2.0), {"dim": 16}, "heads are 2.0\n  hint: pass heads=8, or heads=(HQ, HKV)"),
        ((1, (4, 2, 1)), {"dim": 16}, "heads are (4, 2, 1)"),
        ((1, (4, 3)), {"dim": 16}, "4 query heads are not a multiple of 3 key/value heads"),
        ((1, 0), {"dim": 16}, "no state for HQ = 0"),
        ((1, 2), {"dim": 8}, "head dim K = 8 is outside 16 to 256"),
        ((1, 2), {"dim": (16, 512)}, "head dim V = 512 is outside 16 to 256"),
        ((1, 2), {"dim": 16.0}, "dim is 16.0\n  hint: pass dim=64, or dim=(K, V)"),
        ((1, 2), {"dim": 16, "dtype": "bf16"}, "no state for tensors of 'bf16'"),
        ((1, 2), {"dim": 16, "dtype": torch.int32}, "no state for tensors of torch.int32"),
    ],
)
def test_a_state_of_no_size_is_refused(arguments, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        OPS["sums"].init_state(*arguments, **{**CPU, **options})


@pytest.mark.parametrize(
    ("arguments", "dtype", "said"),
    [
        ((2, 5, -9), torch.float32, "no state for taps = -9"),
        ((2, 5, 9.5), torch.float32, "no state for taps = 9.5"),
        ((2, 0, 9), torch.float32, "no state for channels = 0"),
        ((2, 5, 9), "fp32", "no state for tensors of 'fp32'"),
    ],
)
def test_a_ring_of_no_size_is_refused(arguments, dtype, said):
    with pytest.raises(InputError, match=re.escape(said)):
        OPS["filter"].init_state(*arguments, device="cpu", dtype=dtype)


@pytest.mark.parametrize("wrong", ["a list", "a state of decode"])
def test_an_initial_state_is_a_tensor(wrong):
    op = OPS["sums"]
    given = [1.0] if wrong == "a list" else op.init_state(1, 2, dim=16, **CPU)
    with pytest.raises(InputError, match="initial_state is a ") as caught:
        op(X, X, X, initial_state=given)
    assert "[1, 2, 16, 17]" in str(caught.value)
    assert PACKED in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attn_mask", 'the declaration says it: mask = "causal"'),
        ("causal", 'the declaration says it: mask = "causal"'),
        ("softmax_scale", "the declaration says it: scale = 0.125"),
        ("dropout_p", "dropout is not supported"),
    ],
)
def test_an_argument_of_another_library_is_answered(name, said):
    with pytest.raises(InputError, match=f"takes no argument {name!r}") as caught:
        OPS["sums"](X, X, X, **{name: 1.0})
    assert said in str(caught.value)
