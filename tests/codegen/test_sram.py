"""Predicted SRAM: a property of the graph, held against figures read off the compiler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.sram.layout import accumulator, coalesced
from attnc.codegen.sram.lifetime import Span, place
from attnc.codegen.sram.peak import sram_of
from attnc.codegen.sram.swizzle import scratch_bytes
from attnc.ops.shipped import shipped


def step_of(name: str, dims: tuple[int, int], rows: int, keys: int, warps: int, stages: int):
    request = Request(shipped()[name], DEVICES["h100"], dims, backend="triton")
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


# (variant, device, dims, dtype, pass, tiles, warps, stages): bytes by Triton 3.6.0 and by 3.9.0
COMPILED = [
    (("flash", "a100", (64, 64), "bf16", "online", (128, 64), 4, 3), 49152, 49152),
    (("flash", "h100", (128, 128), "bf16", "online", (16, 64), 4, 3), 71680, 71680),
    (("flash", "a100", (128, 128), "bf16", "online", (64, 64), 4, 1), 40960, 40960),
    (("flash", "a100", (64, 64), "fp32", "online", (64, 32), 4, 2), 49152, 49152),
    (("flash", "h100", (64, 64), "fp32", "online", (64, 32), 4, 3), 81920, 81920),
    (("flash_alibi", "h100", (128, 128), "fp32", "online", (16, 32), 4, 2), 53248, 53248),
    (("linear", "h100", (128, 128), "bf16", "output", (64, 128), 4, 2), 131072, 114688),
    (("linear", "a100", (64, 64), "fp32", "output", (32, 32), 4, 1), 49152, 32768),
    (("lightning", "a100", (128, 128), "bf16", "output", (64, 64), 4, 2), 57344, 57344),
    (("lightning", "h100", (64, 64), "bf16", "state", (64, 64), 4, 3), 49152, 49152),
    (("lightning", "h100", (128, 128), "fp32", "output", (32, 64), 4, 2), 122880, 122880),
]


@pytest.mark.parametrize(("candidate", "oldest", "newest"), COMPILED)
def test_shipped_kernels_take_what_both_compilers_say(candidate, oldest, newest):
    """Read off metadata.shared; these are exact, others are within a tenth (attnc sram-table)."""
    name, device, dims, dtype, kernel, (rows, columns), warps, stages = candidate
    roomy = DEVICES[device].with_sram(1 << 30)
    passes = plans(Request(shipped()[name], roomy, dims, dtype=dtype))[0].passes
    graph = next(step.kernel.graph for step in passes if step.kernel.name == kernel)
    tiles = {"BK": dims[0], "BV": dims[1], "BT": rows, "BS": columns}
    if kernel != "online":
        tiles = {"BK": dims[0], "BC": rows, "BV": columns}
    facts = {"io": dtype, "num_warps": warps, "num_stages": stages, "device": roomy}
    assert sram_of(graph, tiles, **facts, release=(3, 6)).nbytes == oldest
    assert sram_of(graph, tiles, **facts, release=(3, 9)).nbytes == newest


spans = st.lists(
    st.tuples(st.integers(1, 4096), st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=12
)


@given(spans)
def test_buffers_that_live_together_share_no_byte(drawn):
    placed = [Span(nbytes, start, start + life) for nbytes, start, life in drawn]
    total = place(placed)
    for n, span in enumerate(placed):
        assert span.top <= total
        assert not any(span.meets(other) for other in placed[:n])
    live = [sum(s.nbytes for s in placed if s.start <= t < s.end) for t in range(61)]
    assert total >= max(live)


def test_buffers_that_follow_each_other_share_their_bytes():
    assert place([Span(100, 0, 5), Span(80, 5, 9)]) == 100


# rows, columns, bytes an element, instruction, warps; Triton 3.9.0's allocation.size
@pytest.mark.parametrize(
    ("shape", "item", "version", "grid", "stores", "nbytes"),
    [
        ((128, 128), 2, 2, (8, 1), False, 32768),
        ((128, 64), 2, 2, (4, 1), False, 8192),
        ((128, 128), 4, 3, (4, 1), True, 32768),
        ((64, 128), 2, 3, (4, 1), True, 8192),
        ((64, 64), 4, 2, (4, 1), False, 16384),
        ((16, 128), 2, 2, (1, 4), True, 2048),
    ],
)
def test_storing_an_accumulator_takes_the_compilers_scratch(
    shape, item, version, grid, stores, nbytes
):
    rows = coalesced(shape, item, grid[0] * grid[1])
    held = accumulator(shape, version, grid)
    assert scratch_bytes(held, rows, item, matrix_stores=stores) == nbytes
