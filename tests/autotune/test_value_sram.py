"""The SRAM of a declared value: on sm_80 what padding is cleared of is a tile of its own."""

from __future__ import annotations

import pytest

from attnc.autotune.compiler import Compiled, CompileJob, CompilePool, Target
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.dsl import loads
from attnc.ops.built import store_plan

VALUES = loads(
    """
[by_token]
feature_map = "softmax"
scale = 0.3
mask = "causal"
value = "u[b,t,h]*v"
inputs.u = { shape = ["b", "t", "h"] }

[by_channel]
feature_map = "taylor(2)"
scale = 0.3
mask = "causal"
normalize = "sum"
value = "w[c]*v"
params.w = { shape = ["c"] }
"""
)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", VALUES)
def test_a_first_plan_of_a_declared_value_takes_what_was_predicted(name, dim):
    variant = VALUES[name]
    form = "online" if variant.family == "softmax" else "parallel"
    plan = plans(Request(variant, DEVICES["a100"], (dim, dim), form=form))[0]
    (spec,) = kernel_specs(plan)
    with CompilePool(1) as pool:
        (verdict,) = pool.map([CompileJob(store_plan(plan), spec, Target.parse("cuda:80"))])
    assert isinstance(verdict, Compiled), verdict.message
    assert verdict.shared_bytes == plan.sram_bytes
