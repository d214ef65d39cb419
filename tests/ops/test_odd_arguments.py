"""Arguments of a wrong kind: each is named, with what to pass, and none ends inside."""

from __future__ import annotations

import pytest
import torch

from attnc import Variant
from attnc.errors import InputError, PlanError
from attnc.ops.op import compile as compile_op

CAUSAL = Variant("causal", feature_map="softmax", scale="rsqrt(d)", mask="causal")


@pytest.mark.parametrize("device", [torch.device("cpu"), "cuda", 0])
def test_a_device_that_nobody_plans_for_is_named(device):
    with pytest.raises(PlanError, match="unknown device") as caught:
        compile_op(CAUSAL, device=device)
    assert "an op that is given none plans for the device of each call's" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 8.5}, "capacity is 8.5, no number of tokens"),
        ({"capacity": "8"}, "capacity is '8', no number of tokens"),
        ({"capacity": 8, "page_size": 2.0}, "page_size is 2.0, no number of tokens"),
    ],
)
def test_a_cache_is_so_many_whole_tokens(options, message):
    with pytest.raises(InputError, match=message):
        compile_op(CAUSAL).init_state(1, 2, dim=16, dtype=torch.float32, device="cpu", **options)
