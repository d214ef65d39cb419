"""Numbers in interpreted Gluon kernels: scalars as the card counts, tiles as torch rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnc.autotune.gluon_interpreter import language as gl
from attnc.autotune.gluon_interpreter.kernel import jit


def test_scalars_count_as_the_card_does():
    found = []

    @jit
    def kernel(n):
        for i in range(n):
            found.append((i.to(gl.int64).dtype, (i - 5) // 2, (i - 5) % 3, i ^ 1))
        found.append(n * 2_000_000_000)

    np.seterr(all="ignore")
    kernel[(1,)](2)
    first, second, product = found
    # -5 / 2 and -5 % 3 towards zero, where Python goes down
    assert (first[0], int(first[1]), int(first[2]), int(first[3])) == (gl.int64, -2, -2, 1)
    assert (int(second[1]), int(second[2]), int(second[3])) == (-2, -1, 0)
    assert int(product) == 4_000_000_000 - 2**32, "32 bits wrap"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tiles_round_as_torch_does(dtype):
    x = torch.randn(64, generator=torch.Generator().manual_seed(2))
    out = torch.full((64,), float("nan"), dtype=dtype)

    @jit
    def kernel(x, o):
        r = gl.arange(0, 64)
        b_x = gl.load(x + r).to(o.dtype)
        gl.store(o + r, b_x * b_x + b_x)

    kernel[(1,)](x, out)
    rounded = x.to(dtype)
    assert torch.equal(out, rounded * rounded + rounded)
