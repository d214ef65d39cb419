"""Predicted SRAM: a property of the graph, held against figures read off the compiler."""

from __future__ import annotations

import pytest

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planner import plans
from attnc.codegen.sram import sram_of
from attnc.ops.shipped import shipped


def step_of(name: str, dims: tuple[int, int], rows: int, keys: int, warps: int, stages: int):
    request = Request(shipped()[name], DEVICES["h100"], dims)
    for plan in plans(request):
        step = plan.passes[-1]
        if (step.tile["BT"], step.tile["BS"], step.num_warps, step.num_stages) == (
            rows, keys, warps, stages,
        ):  # fmt: skip
            return step
    raise AssertionError("no such candidate")


@pytest.mark.parametrize(("stages", "copies"), [(2, 2), (3, 3)])
def test_keys_and_values_are_held_once_a_stage_beside_the_queries(stages, copies):
    """Read off the compiler: q 128 x 64, and a tile of k and of v a stage, in bf16, on sm_90."""
    step = step_of("flash", (64, 64), 128, 64, 8, stages)
    assert step.cost.sram_bytes == 128 * 64 * 2 + copies * 2 * 64 * 64 * 2


def test_a_node_less_is_a_buffer_less():
    step = step_of("flash", (64, 64), 128, 64, 8, 3)
    graph = step.kernel.graph
    facts = {"io": "bf16", "num_warps": 8, "num_stages": 3, "device": DEVICES["h100"]}
    whole = sram_of(graph, step.tile, **facts).nbytes
    less = sram_of(graph.without("values"), step.tile, **facts).nbytes
    assert less < whole
