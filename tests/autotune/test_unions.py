"""Masks that are unions, as the compiler leaves them: no interpreter sees what it drops."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from itertools import count

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from attnc.autotune.module_cache import store_module
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads

UNION = """
[union]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(24) | (i - j >= 30))"
"""
NUMBERS = count()


def loops(plan: Plan, *, last: bool = False) -> dict[str, str]:
    """The text of each kernel, or of the last, after Triton's own passes, for sm_90."""
    path = store_module(render(plan), f"union_{next(NUMBERS)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for kernel in kernel_specs(plan)[-1:] if last else kernel_specs(plan):
        kind = GluonASTSource if plan.backend == "gluon" else ASTSource
        source = kind(
            fn=getattr(module, kernel.name),
            signature={argument.name: argument.type for argument in kernel.arguments},
            constexprs={a.name: a.value for a in kernel.arguments if a.type == "constexpr"},
        )
        options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
        if plan.backend == "gluon":
            options["maxnreg"] = kernel.registers
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        found[kernel.name] = compiled.asm["ttgir"]
    return found


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_compiled_union_still_counts_the_tiles_that_it_has_visited(phase):
    """Triton 3.6 drops `done` from a `for`, and then every clause starts from the first key."""
    request = Request(loads(UNION)["union"], DEVICES["h100"], (64, 64), phase=phase)
    plan = plans(replace(request, backend="triton"))[0]
    walks = 0
    for text in loops(plan).values():
        for condition in re.findall(r"scf.condition\(.*", text):
            walks += 1
            assert re.search(r"\bi32\b", condition), condition
    assert walks == (1 if phase == "forward" else 2)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_both_kinds_of_warps_count_the_tiles_and_the_keys_that_they_have_visited(phase):
    """Two numbers in each: which tile it is, for the barriers, and where the tiles so far end."""
    request = Request(loads(UNION)["union"], DEVICES["h100"], (64, 64), phase=phase)
    plan = plans(replace(request, backend="gluon"))[0]
    for text in loops(plan, last=True).values():
        walks = re.findall(r"scf.condition\(.*", text)
        # the producer, and two groups of consumers
        assert len(walks) == 3
        for condition in walks:
            assert len(re.findall(r"(?<![x\w])i32\b", condition)) >= 2, condition
