"""The interpreter of Gluon's kernels: what a card would do, and what it would do in silence."""

from __future__ import annotations

import re

import pytest
import torch

from attnc.autotune.gluon_interpreter import barriers as mbarrier
from attnc.autotune.gluon_interpreter import copies as tma
from attnc.autotune.gluon_interpreter import language as gl
from attnc.autotune.gluon_interpreter.copies import TensorDescriptor, fence_async_shared
from attnc.autotune.gluon_interpreter.faults import GluonFault
from attnc.autotune.gluon_interpreter.kernel import Seed, jit
from attnc.autotune.gluon_interpreter.products import warpgroup_mma, warpgroup_mma_wait
from attnc.autotune.gluon_interpreter.shared import allocate
from tests.conftest import ROOT

SIDE = 16
# what statements of other families and 8-bit tensors call: gluon refuses those
OF_OTHERS = {"dot", "trans", "cumsum", "float8e4nv", "ceil"}


def test_the_interpreter_knows_every_function_that_a_statement_may_call():
    texts = [
        path.read_text(encoding="utf-8") for path in (ROOT / "attnc" / "codegen").rglob("*.py")
    ]
    texts += [
        path.read_text(encoding="utf-8") for path in (ROOT / "attnc" / "templates").glob("*.jinja")
    ]
    called = set(re.findall(r"\b[tg]l\.([a-z]\w*)", "\n".join(texts)))
    assert len(called) > 25
    assert called - OF_OTHERS <= set(gl.__all__)


def boxed(x: torch.Tensor) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, [SIDE, SIDE], gl.NVMMASharedLayout())


def drawn(tiles: int) -> torch.Tensor:
    return torch.randn(tiles * SIDE, SIDE, generator=torch.Generator().manual_seed(1)).bfloat16()


def barrier(count: int):
    found = allocate(gl.int64, [1])
    mbarrier.init(found, count=count)
    return found


@pytest.fixture(params=range(5))
def seed(request):
    before, Seed.value = Seed.value, request.param
    yield request.param
    Seed.value = before


def pipeline(*, waits_full=True, waits_free=True, arrives_free="after", expects=512, slots=2):
    """A kernel that sums x @ x.T over tiles, by a producer and a consumer, or one that forgets."""

    def producer(x, tiles, full, free, n):
        for t in range(n):
            slot = t % slots
            if waits_free:
                mbarrier.wait(free[slot], ((t // slots) & 1) ^ 1)
            mbarrier.expect(full[slot], expects)
            tma.async_load(x, [t * SIDE, 0], full[slot], tiles.index(slot))

    def consumer(o, tiles, full, free, n):
        total = gl.zeros([SIDE, SIDE], gl.float32)
        for t in range(n):
            slot = t % slots
            if waits_full:
                mbarrier.wait(full[slot], (t // slots) & 1)
            tile = tiles.index(slot)
            total = warpgroup_mma(tile, tile.permute((1, 0)), total, is_async=True)
            if arrives_free == "before":
                mbarrier.arrive(free[slot], count=1)
            total = warpgroup_mma_wait(0, deps=(total,))
            if arrives_free == "after":
                mbarrier.arrive(free[slot], count=1)
        r = gl.arange(0, SIDE)
        gl.store(o + r[:, None] * SIDE + r[None, :], total)

    @jit
    def kernel(x, o, n):
        tiles = gl.allocate_shared_memory(x.dtype, [slots, SIDE, SIDE], x.layout)
        full = [barrier(1) for _ in range(slots)]
        free = [barrier(1) for _ in range(slots)]
        gl.warp_specialize(
            [(consumer, (o, tiles, full, free, n)), (producer, (x, tiles, full, free, n))], [1]
        )

    return kernel


def run(kernel, tiles: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    x = drawn(tiles)
    out = torch.full((SIDE, SIDE), float("nan"))
    kernel[(1,)](boxed(x), out, tiles)
    parts = x.double().view(tiles, SIDE, SIDE)
    return out.double(), (parts @ parts.transpose(1, 2)).sum(0)


def test_a_pipeline_computes_what_it_says_in_any_order_of_its_warps(seed):
    out, expected = run(pipeline())
    assert float((out - expected).abs().max()) < 1e-4


# the order decides which of two faults is met first
BROKEN = {
    "no wait for what lands": ({"waits_full": False}, "a race on tiles"),
    "no wait for what is read": ({"waits_free": False}, "a race on tiles|phase that awaits 0"),
    "given back too early": ({"arrives_free": "before"}, "a race on tiles"),
    "never given back": ({"arrives_free": "never"}, "nothing can go on"),
    "too few bytes": ({"expects": 16}, "512 bytes land at .*, which expects 16 more"),
    "too many bytes": ({"expects": 1024}, "nothing can go on"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_a_pipeline_forgets_is_a_fault_whatever_the_order(what, seed):
    forgets, told = BROKEN[what]
    with pytest.raises(GluonFault, match=told):
        run(pipeline(**forgets))


def test_a_race_names_both_sides_and_their_lines():
    with pytest.raises(GluonFault) as caught:
        run(pipeline(waits_free=False))
    told = str(caught.value)
    assert "written by a copy of producer 1 at line " in told
    assert "by a product of consumer 0 at line " in told or "by a copy of producer 1" in told


def test_a_deadlock_says_who_waits_for_what():
    with pytest.raises(GluonFault, match=r"producer 1 waits for parity 0 of found.* at line \d+"):
        run(pipeline(arrives_free="never"))


def once(body):
    """A kernel of one partition over a tile of x and an output."""

    @jit
    def kernel(x, o):
        body(x, o, gl.allocate_shared_memory(gl.bfloat16, [SIDE, SIDE], x.layout))

    x = drawn(1)
    out = torch.full((SIDE, SIDE), float("nan"), dtype=torch.bfloat16)
    kernel[(1,)](boxed(x), boxed(out))
    return x, out


def landed(x, tile, at=(0, 0)):
    gate = barrier(1)
    mbarrier.expect(gate, x.block_type.nbytes)
    tma.async_load(x, list(at), gate, tile)
    mbarrier.wait(gate, 0)


def test_boxes_are_zero_past_a_tensors_edge_and_written_within_it_alone():
    def body(x, o, tile):
        landed(x, tile, (-4, 6))
        tma.async_store(o, [0, 6], tile)
        tma.store_wait(0)

    x, out = once(body)
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bfloat16)
    expected[4:, :10] = x[:12, 6:]
    assert torch.equal(out[:, 6:], expected[:, :10])
    assert out[:, :6].isnan().all()


def unfenced(x, o, tile):
    tile.store(gl.zeros([SIDE, SIDE], gl.bfloat16))
    tma.async_store(o, [0, 0], tile)
    tma.store_wait(0)


def overwritten(x, o, tile):
    landed(x, tile)
    tma.async_store(o, [0, 0], tile)
    tile.store(gl.zeros([SIDE, SIDE], gl.bfloat16))


def unwaited(x, o, tile):
    landed(x, tile)
    tma.async_store(o, [0, 0], tile)


def read_early(x, o, tile):
    landed(x, tile)
    total = gl.zeros([SIDE, SIDE], gl.float32)
    total = warpgroup_mma(tile, tile, total, is_async=True)
    total + 1.0


def handed_early(x, o, tile):
    landed(x, tile)
    zero = gl.zeros([SIDE, SIDE], gl.float32)
    one = warpgroup_mma(tile, tile, zero, is_async=True)
    other = warpgroup_mma(tile, tile, zero, is_async=True)
    warpgroup_mma_wait(1, deps=(one, other))


def twice(x, o, tile):
    landed(x, tile)
    for _ in range(2):
        tma.async_store(o, [0, 0], tile)
    tma.store_wait(0)


def past_the_end(x, o, tile):
    landed(x, tile)
    tile.index(SIDE)


def too_many(x, o, tile):
    mbarrier.arrive(barrier(1), count=2)


def not_made(x, o, tile):
    mbarrier.wait(allocate(gl.int64, [1]), 0)


def of_other_shapes(x, o, tile):
    landed(x, tile)
    warpgroup_mma(tile, tile.slice(0, 8, 1), gl.zeros([SIDE, SIDE], gl.float32))


FAULTS = {
    "was written by the kernel at line .* and not fenced": unfenced,
    "a race on tile|a race on": overwritten,
    "the copy out of line .* is never waited for": unwaited,
    "is read before a wait handed it over": read_early,
    "is still under way after the wait": handed_early,
    "written twice in one launch": twice,
    "has 16 places, none 16": past_the_end,
    "gets 2 arrivals in a phase that awaits 1": too_many,
    "is used before mbarrier.init": not_made,
    "a product of shapes that do not fit": of_other_shapes,
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_no_card_would_tell_is_a_fault(what):
    with pytest.raises(GluonFault, match=what):
        once(FAULTS[what])


def test_a_fence_lets_the_copy_engine_see_what_a_warp_group_wrote():
    def body(x, o, tile):
        tile.store(gl.full([SIDE, SIDE], 3.0, gl.bfloat16))
        fence_async_shared()
        tma.async_store(o, [0, 0], tile)
        tma.store_wait(0)

    _, out = once(body)
    assert (out == 3).all()


def test_an_address_outside_of_a_tensor_is_a_fault():
    @jit
    def kernel(x, n):
        r = gl.arange(0, 16)
        gl.load(x + r, mask=r < n, other=0.0)

    x = torch.randn(10)
    kernel[(1,)](x, 10)
    with pytest.raises(GluonFault, match="element 10 of a tensor's 10 is accessed"):
        kernel[(1,)](x, 11)


def test_tensors_of_one_storage_have_one_writer_an_element_too():
    @jit
    def kernel(x, y):
        gl.store(x + gl.arange(0, 8), 1.0)
        gl.store(y + gl.arange(0, 8), 2.0)

    x = torch.zeros(24)
    kernel[(1,)](x, x[8:])
    assert x.tolist() == [1.0] * 8 + [2.0] * 8 + [0.0] * 8
    with pytest.raises(GluonFault, match="written twice"):
        kernel[(1,)](x, x[7:])
    with pytest.raises(GluonFault, match="written twice"):
        kernel[(2,)](x, x[8:])
