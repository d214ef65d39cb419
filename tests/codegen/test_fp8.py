"""Plans and text of 8-bit tensors: what they cost, and where their scales go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.codegen.sram.peak import sram_of
from attnc.codegen.text.render import render
from attnc.dsl.scales import over_scales
from attnc.errors import PlanError
from attnc.ops.shipped import shipped

H100 = DEVICES["h100"]


def plan_of(name: str, dim: int = 128, **facts: object) -> Plan:
    variant = over_scales(shipped()[name])
    return plans(Request(variant, H100, (dim, dim), dtype="e4m3", **facts))[0]  # type: ignore[arg-type]


# (variant, device, dim, tiles, warps, stages): bytes, the same by Triton 3.6.0 and by 3.9.0
COMPILED = [
    (("flash", "h100", 128, (128, 128), 8, 3), 131072),
    (("flash", "h100", 128, (128, 64), 8, 3), 73728),
    (("flash", "h100", 64, (64, 64), 4, 1), 12288),
    (("flash", "h100", 64, (16, 64), 4, 3), 20480),
    (("flash", "h100", 128, (16, 32), 4, 2), 13312),
    (("flash", "l4", 64, (128, 64), 8, 3), 24576),
    (("flash_alibi", "h100", 256, (128, 64), 8, 3), 147456),
]


@pytest.mark.parametrize(("candidate", "nbytes"), COMPILED)
def test_bytes_and_what_they_are_widened_to_take_what_the_compilers_say(candidate, nbytes):
    """Read off metadata.shared: k and v wait as bytes, and the v that a product reads is bf16."""
    name, device, dim, (rows, columns), warps, stages = candidate
    roomy = DEVICES[device].with_sram(1 << 30)
    request = Request(over_scales(shipped()[name]), roomy, (dim, dim), dtype="e4m3")
    graph = plans(request)[0].passes[-1].kernel.graph
    tiles = {"BK": dim, "BV": dim, "BT": rows, "BS": columns}
    facts = {"io": "e4m3", "num_warps": warps, "num_stages": stages, "device": roomy}
    for release in ((3, 6), (3, 9)):
        assert sram_of(graph, tiles, **facts, release=release).nbytes == nbytes


def test_the_roofline_is_that_of_one_product_at_twice_the_rate():
    request = Request(shipped()["flash"], H100, (128, 128), backend="triton")
    wide, narrow = plans(request)[0], plan_of("flash")
    assert narrow.time_us == pytest.approx(0.75 * wide.time_us)
    # q, k and v are half as wide; o counts as they do
    assert narrow.passes[-1].cost.hbm_bytes < 0.7 * wide.passes[-1].cost.hbm_bytes


@pytest.mark.parametrize("dim", [64, 128])
def test_the_first_plan_leaves_registers_to_widen_in(dim):
    step = plan_of("flash", dim).passes[-1]
    tile = step.tile
    held = tile["BT"] * (tile["BV"] + tile["BS"]) + tile["BS"] * tile["BV"] // 2
    assert held <= 120 * step.num_warps * 32


def test_no_element_is_multiplied_for_its_scale():
    text = render(plan_of("flash"))
    assert "b_c = b_u_q_scale * b_u_k_scale * " in text
    assert "b_p = tl.exp2(b_s * b_c - b_ms[:, None])" in text
    body = text.partition("for i_s in range")[2].partition("b_lse = ")[0]
    assert "_scale" not in body
    assert text.index("b_o = b_o * b_u_v_scale") > text.index("b_lse = ")


def test_heads_of_sixteen_channels_are_padded_with_zeros():
    plan = plan_of("flash", 16)
    assert plan.passes[-1].tile["BK"] == 32
    assert "m_k = o_k < K" in render(plan)


@pytest.mark.parametrize(
    ("out", "torch_type"), [("", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_an_output_is_allocated_and_compiled_in_the_type_asked_for(out, torch_type):
    plan = plan_of("flash", 64, out=out)
    assert f"o = torch.empty((B, TQ, HQ, 64), dtype=torch.{torch_type}," in render(plan)
    (spec,) = kernel_specs(plan)
    types = {argument.name: argument.type for argument in spec.arguments}
    assert types["q"] == types["k"] == types["v"] == "*fp8e4nv"
    assert types["o"] == f"*{out or 'bf16'}"


def test_plans_of_several_output_types_are_several_kernels():
    digests = {plan_of("flash", 64, out=out).digest for out in ("", "fp16", "fp32")}
    assert len(digests) == 3
    assert plan_of("flash", 64, out="bf16").digest == plan_of("flash", 64).digest


def test_an_output_that_no_kernel_writes_is_refused():
    with pytest.raises(PlanError) as caught:
        plan_of("flash", out="fp64")
    assert str(caught.value) == (
        "error[A200]: no kernel of e4m3 tensors writes fp64\n  note: they write bf16, fp16, fp32"
    )


def test_scales_are_part_of_what_a_variant_means():
    plain = shipped()["flash"]
    scaled = over_scales(plain)
    assert scaled.digest != plain.digest
    assert over_scales(scaled) is scaled
    assert {tensor.name for tensor in scaled.inputs} == {"q_scale", "k_scale", "v_scale"}
    assert replace(scaled.meaning, scaled=False, inputs=plain.inputs) == plain.meaning
