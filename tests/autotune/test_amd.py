"""What AMD's compilers take: fp32 products as they are, where NVIDIA's are three of tf32."""

from __future__ import annotations

import pytest

from attnc.autotune.compiler import Compiled, CompileJob, CompilePool, Target
from attnc.cli.targets import device_of_target
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.ops.built import store_plan
from attnc.ops.shipped import shipped


def first_plan(name: str, target: str, precision: str = "tf32x3") -> Plan:
    device = device_of_target(target)
    return plans(Request(shipped()[name], device, (64, 64), "fp32", precision=precision))[0]


@pytest.mark.parametrize("target", ["hip:gfx942", "hip:gfx90a"])
@pytest.mark.parametrize("name", ["flash", "linear"])
def test_fp32_compiles_for_amd(name, target):
    plan = first_plan(name, target)
    path = store_plan(plan)
    jobs = [CompileJob(path, spec, Target.parse(target)) for spec in kernel_specs(plan)]
    with CompilePool(1) as pool:
        for verdict in pool.map(jobs):
            assert isinstance(verdict, Compiled), verdict.message


def test_one_product_of_tf32_is_had_where_there_is_one():
    asked = {t: first_plan("flash", t, "tf32").precision for t in ("hip:gfx942", "hip:gfx90a")}
    assert asked == {"hip:gfx942": "tf32", "hip:gfx90a": "ieee"}
    assert first_plan("flash", "cuda:80", "tf32").precision == "tf32"
    assert first_plan("flash", "cuda:80").precision == "tf32x3"
