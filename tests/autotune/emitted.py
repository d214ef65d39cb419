"""Small modules of the kind that codegen emits, as text."""

from __future__ import annotations

HEADER = '''"""A module as codegen emits it."""

import torch
import triton
import triton.language as tl

'''

ADD = (
    HEADER
    + """
@triton.jit
def add_kernel(x, y, o, N, BN: tl.constexpr):
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < N
    b_x = tl.load(x + o_n, mask=m_n, other=0.0)  # [BN]
    b_y = tl.load(y + o_n, mask=m_n, other=0.0)  # [BN]
    tl.store(o + o_n, b_x + b_y, mask=m_n)


def forward(x, y):
    o = torch.empty_like(x)
    N = x.numel()
    add_kernel[(triton.cdiv(N, 64),)](x, y, o, N, BN=64)
    return o
"""
)

# [M, K] @ [K, N] in blocks of 16, over a loop whose bound is a runtime argument
MATMUL = (
    HEADER
    + """
@triton.jit
def matmul_kernel(
    a, b, o, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, BT: tl.constexpr
):
    o_m = tl.program_id(0) * BT + tl.arange(0, BT)
    o_n = tl.program_id(1) * BT + tl.arange(0, BT)
    o_k = tl.arange(0, BT)
    b_o = tl.zeros([BT, BT], dtype=tl.float32)
    for i_k in range(0, tl.cdiv(K, BT)):
        m_k = i_k * BT + o_k < K
        p_a = a + o_m[:, None] * stride_am + (i_k * BT + o_k)[None, :] * stride_ak
        p_b = b + (i_k * BT + o_k)[:, None] * stride_bk + o_n[None, :] * stride_bn
        b_a = tl.load(p_a, mask=(o_m < M)[:, None] & m_k[None, :], other=0.0)
        b_b = tl.load(p_b, mask=m_k[:, None] & (o_n < N)[None, :], other=0.0)
        b_o += tl.dot(b_a, b_b, input_precision="ieee")
    m_o = (o_m < M)[:, None] & (o_n < N)[None, :]
    tl.store(o + o_m[:, None] * N + o_n[None, :], b_o.to(o.dtype.element_ty), mask=m_o)


def forward(a, b):
    M, K = a.shape
    N = b.shape[1]
    o = torch.empty(M, N, dtype=a.dtype, device=a.device)
    grid = (triton.cdiv(M, 16), triton.cdiv(N, 16))
    matmul_kernel[grid](a, b, o, M, N, K, *a.stride(), *b.stride(), BT=16)
    return o
"""
)

# rows past the first are never written
FIRST_ROW = (
    HEADER
    + """
@triton.jit
def first_row_kernel(x, o, N, BN: tl.constexpr):
    o_n = tl.arange(0, BN)
    tl.store(o + o_n, tl.load(x + o_n, mask=o_n < N), mask=o_n < N)


def forward(x):
    o = torch.empty(x.shape, dtype=x.dtype)
    first_row_kernel[(1,)](x, o, x.shape[1], BN=64)
    return o, torch.empty_like(x), x.new_empty(2), torch.empty_strided((2,), (1,)), None
"""
)

# no kernel: what a worker does with its values, and what happens when it fails
PLAIN = '''"""Functions that launch nothing."""

import os
import sys
import time


def same(*values, **named):
    return (*values, named) if named else values


def facts(x):
    return str(x.dtype), list(x.shape), list(x.stride()), x.is_contiguous(), x.data_ptr() % 16


def share(x, y):
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def chatter(x):
    print('{"result": {"value": "forged"}}')
    os.write(1, b"raw\\n")
    sys.stdout.flush()
    return x + 1, sys.stdin.read()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def overwrite(x):
    x.zero_()
    return None


def abort():
    sys.stderr.write("LLVM ERROR: out of tea\\n")
    sys.stderr.flush()
    os.abort()


def process():
    return os.getpid(), os.environ["TRITON_INTERPRET"]


def strange():
    return object()
'''

# raises in a helper of a kernel
RAISES = (
    HEADER
    + """
@triton.jit
def helper(b_x):
    tl.static_assert(False, "never so")
    return b_x


@triton.jit
def raises_kernel(x):
    tl.store(x, helper(tl.load(x)))


def forward(x):
    raises_kernel[(1,)](x)
"""
)

# one warp holds more floats than it has registers
SPILLS = (
    HEADER
    + """
@triton.jit
def spills_kernel(x, o, BT: tl.constexpr):
    p_t = tl.arange(0, BT)[:, None] * BT + tl.arange(0, BT)[None, :]
    b_x = tl.exp(tl.load(x + p_t))
    tl.store(o + p_t, b_x / tl.sum(tl.sum(b_x, 1), 0))
"""
)

# LLVM aborts the process; here the module does so itself
ABORTS = PLAIN + "\nabort()\n"
