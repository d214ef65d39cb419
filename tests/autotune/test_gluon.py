"""Gluon's kernels compiled for sm_90 with no GPU: every feature, on whichever Triton is here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.module_cache import store_module
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.render import render
from attnc.dsl.toml_file import loads
from tests.conftest import ROOT

TOML = ROOT / "tests" / "gpu" / "gluon_variants.toml"
VARIANTS = loads(Path(TOML).read_text(encoding="utf-8"))
# a variant for every statement that differs, a head for every width, both 16-bit types
CASES = [
    ("causal", 64, "bf16"),
    ("banded", 64, "bf16"),
    ("capped", 128, "bf16"),
    ("biased", 64, "fp16"),
    ("sunk", 256, "bf16"),
]


def parameters_of(ptx: str) -> list[str]:
    """The types of an entry's parameters, in order."""
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    return re.findall(r"\.param (?:\.align 64 )?\.(\w+)", entry[1])


def planned_parameters(plan: Plan) -> Iterator[str]:
    """What the driver is handed: descriptors with their sizes and strides, pointers, numbers."""
    (spec,) = kernel_specs(plan)
    for argument in spec.arguments:
        if argument.type.startswith("tensordesc"):
            yield from ("b8", *["u32"] * 4, *["u64"] * 4)
        elif argument.type != "constexpr":
            yield "u64" if argument.type.startswith("*") else "u32"
    yield from ("u64", "u64")


@pytest.mark.rest(keep=3)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "dim", "ordered"),
    [("windowed", 64, False), ("sloped", 128, False), ("causal", 64, True), ("capped", 128, True)],
)
def test_persistent_programs_compile_too(name, dim, ordered):
    request = Request(VARIANTS[name], DEVICES["h100"], (dim, dim), backend="gluon")
    tiles = ((plan, plan.passes[0].tile) for plan in plans(request))
    plan = next(plan for plan, tile in tiles if "P" in tile and ("ORDERED" in tile) == ordered)
    path = store_module(render(plan), name)
    with CompilePool(1) as pool:
        (verdict,) = pool.map([CompileJob(path, kernel_specs(plan)[0], Target.parse("cuda:90"))])
    assert isinstance(verdict, Compiled), verdict
    assert verdict.shared_bytes <= plan.sram_bytes <= verdict.shared_bytes + 128
    assert verdict.ptx is not None and verdict.ptx.count("cp.async.bulk.wait_group.read") >= 4


@pytest.mark.rest(keep=2)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "dim", "dtype"), CASES)
def test_a_kernel_compiles_for_sm_90_and_takes_the_sram_that_was_planned(name, dim, dtype):
    request = Request(VARIANTS[name], DEVICES["h100"], (dim, dim), dtype, backend="gluon")
    plan = plans(request)[0]
    path = store_module(render(plan), name)
    with CompilePool(1) as pool:
        (verdict,) = pool.map([CompileJob(path, kernel_specs(plan)[0], Target.parse("cuda:90"))])
    assert isinstance(verdict, Compiled), verdict
    assert verdict.num_warps == plan.passes[0].num_warps
    assert verdict.shared_bytes <= plan.sram_bytes <= verdict.shared_bytes + 128
    assert verdict.ptx is not None and "wgmma.mma_async" in verdict.ptx
    assert "cp.async.bulk.tensor.4d" in verdict.ptx and "setmaxnreg" in verdict.ptx
    assert ("tanh.approx.f32" in verdict.ptx) == (name == "capped")
    assert parameters_of(verdict.ptx) == list(planned_parameters(plan))
    if name == "causal":
        assert verdict.spill_stores == 0


@pytest.mark.rest(keep=2)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "dim", "dtype"), [("causal", 128, "bf16"), ("sloped", 64, "fp16")]
)
def test_a_backward_compiles_for_sm_90_in_the_sram_and_registers_that_were_planned(
    name, dim, dtype
):
    asked = Request(
        VARIANTS[name], DEVICES["h100"], (dim, dim), dtype, phase="backward", backend="gluon"
    )
    plan = plans(asked)[0]
    path = store_module(render(plan), name)
    jobs = [CompileJob(path, spec, Target.parse("cuda:90")) for spec in kernel_specs(plan)]
    with CompilePool(1) as pool:
        verdicts = pool.map(jobs)
    for step, verdict in zip(plan.passes, verdicts, strict=True):
        assert isinstance(verdict, Compiled), verdict
        assert verdict.shared_bytes <= step.cost.sram_bytes <= verdict.shared_bytes + 128
        # a card measured the code of Triton 3.6; later ones spill a little more
        assert verdict.spill_stores is not None and verdict.spill_stores <= 200
        assert verdict.ptx is not None and verdict.ptx.count("wgmma.mma_async") >= 3


@pytest.mark.rest(keep=2)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("dim", [128, 64])
def test_a_fused_backward_compiles_for_sm_90_and_spills_next_to_nothing(dim):
    asked = Request(
        VARIANTS["causal"], DEVICES["h100"], (dim, dim), phase="backward", backend="gluon",
        deterministic=False,
    )  # fmt: skip
    plan = next(plan for plan in plans(asked) if not plan.deterministic)
    path = store_module(render(plan), "causal")
    jobs = [CompileJob(path, spec, Target.parse("cuda:90")) for spec in kernel_specs(plan)]
    with CompilePool(1) as pool:
        verdicts = pool.map(jobs)
    for step, verdict in zip(plan.passes, verdicts, strict=True):
        assert isinstance(verdict, Compiled), verdict
        assert verdict.shared_bytes <= step.cost.sram_bytes <= verdict.shared_bytes + 128
        # at 128 columns Triton 3.9 spills seven words of what its masked loops read once
        most = 28 if dim == 128 else 0
        assert verdict.spill_stores is not None and verdict.spill_stores <= most
    assert verdicts[1].ptx is not None
    assert "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add" in verdicts[1].ptx
