"""Sums that programs share: atomic adds, the copy engine's, and the fence that orders them."""

from __future__ import annotations

import pytest
import torch

from attnc.autotune.gluon_interpreter import barriers as mbarrier
from attnc.autotune.gluon_interpreter import copies as tma
from attnc.autotune.gluon_interpreter import language as gl
from attnc.autotune.gluon_interpreter.copies import fence_async_shared
from attnc.autotune.gluon_interpreter.faults import GluonFault
from attnc.autotune.gluon_interpreter.kernel import jit
from attnc.autotune.gluon_interpreter.products import warpgroup_mma
from attnc.autotune.gluon_interpreter.shared import allocate
from tests.autotune.test_gluon_interpreter import SIDE, barrier, boxed


def adding(*, plainly=None, programs=2):
    """A kernel whose programs all add 1 to eight numbers, and may touch the last one plainly."""

    @jit
    def kernel(x):
        r = gl.arange(0, 8)
        if plainly == "read first":
            gl.load(x + 7)
        gl.atomic_add(x + r, gl.full([8], 1.0, gl.float32))
        if plainly == "read":
            gl.load(x + 7)
        if plainly == "write":
            gl.store(x + 7, 0.0)

    x = torch.arange(10.0)
    kernel[(programs,)](x)
    return x


def test_programs_add_to_the_same_numbers():
    assert adding(programs=5).tolist() == [float(n + 5) for n in range(8)] + [8.0, 9.0]


@pytest.mark.parametrize("plainly", ["read", "write", "read first"])
def test_a_plain_access_beside_atomic_ones_is_a_fault(plainly):
    with pytest.raises(GluonFault, match="in a launch that adds to it"):
        adding(plainly=plainly)


def test_the_copy_engine_adds_what_lies_inside_of_a_tensor():
    @jit
    def kernel(o):
        tile = allocate(gl.bfloat16, [SIDE, SIDE])
        tile.store(gl.full([SIDE, SIDE], 2.0, gl.bfloat16))
        fence_async_shared()
        tma.async_atomic_add(o, [10, 0], tile)
        tma.store_wait(0)

    out = torch.ones(SIDE, SIDE).bfloat16()
    kernel[(3,)](boxed(out))
    assert (out[:10] == 1).all() and (out[10:] == 7).all()


def test_a_fence_after_the_arrival_comes_too_late_for_whoever_waited_for_it():
    @jit
    def writer(tile, full):
        tile.store(gl.full([SIDE, SIDE], 2.0, gl.bfloat16))
        mbarrier.arrive(full)
        fence_async_shared()

    @jit
    def reader(tile, full):
        mbarrier.wait(full, 0)
        zeros = gl.zeros([SIDE, SIDE], gl.float32)
        warpgroup_mma(tile, tile, zeros, use_acc=False)

    @jit
    def kernel(x):
        tile = allocate(gl.bfloat16, [SIDE, SIDE])
        full = barrier(1)
        gl.warp_specialize([(writer, (tile, full)), (reader, (tile, full))], [4])

    for _ in range(20):
        with pytest.raises(GluonFault, match="not fenced"):
            kernel[(1,)](torch.zeros(1))
