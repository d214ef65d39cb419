"""`attnc demo`: every stage of a published layer."""

from __future__ import annotations

import pytest

from attnc.cli.demo import excerpt
from attnc.cli.demo_layers import LAYERS, SLICE_TOKENS
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.render import render
from attnc.ops.shipped import shipped


# compiled for several GPUs, then interpreted in two precisions
@pytest.mark.rest
@pytest.mark.timeout(300)
def test_one_layer_goes_through_every_stage_and_is_proved(attnc):
    done = attnc("demo", "--only", "lightning")
    assert (done.status, done.err) == (0, "")
    stages = ("declared", "algebra", "planned", "emitted", "compiled", "proved", "summary")
    places = [done.out.index(f"\n{stage} ") for stage in stages]
    assert places == sorted(places)
    assert "TransNormerLLM-0.4B" in done.out
    assert 'log_decay = "-slope[h]"' in done.out
    # the longest line of the declaration, which a terminal of 120 columns wraps
    assert 'arxiv = "2401.04658" }' in " ".join(done.out.split())
    assert "of 232,448 B" in done.out
    for target in ("cuda:80", "cuda:90"):
        assert f"lightning_output  {target} " in done.out
    assert f"on the slice B=1 T={SLICE_TOKENS} H=2 D=128" in done.out
    assert "FAIL" not in done.out
    assert "\npassed in " in done.out


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.model)
def test_a_slice_keeps_the_layer_s_dims_and_its_grouping(layer):
    q, kv = layer.heads
    assert layer.sliced[0] * kv == layer.sliced[1] * q
    assert layer.sliced[0] > 1
    assert layer.source
    assert layer.tokens > SLICE_TOKENS
    assert layer.variant in shipped()


@pytest.mark.parametrize("name", [layer.variant for layer in LAYERS])
def test_an_excerpt_is_a_loop_of_a_kernel_around_a_product(name):
    source = render(plans(Request(shipped()[name], DEVICES["h100"], (64, 64)))[0])
    lines = excerpt(source)
    assert lines[0].startswith("    for ")
    assert lines[-1] == "        ..."
    assert any("tl.dot(" in line or "warpgroup_mma(" in line for line in lines)
    kept = [line for line in lines if line.strip() and line != "        ..."]
    assert all(line in source.splitlines() for line in kept)
    assert all(line.startswith("    ") for line in kept)
