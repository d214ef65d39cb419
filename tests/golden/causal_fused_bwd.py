"""causal: online backward, emitted by attnc.

variant     feature_map softmax, scale rsqrt(d), mask causal, normalize softmax
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        clear: BT=64 BK=64 BV=64, 4 warps, 1 stages
plan        dqkv: BT=64 BS=128 BK=64 BV=64 NW=2 BP=32, 12 warps, 2 stages
plan        cast: BT=64 BK=64 BV=64, 4 warps, 1 stages
sram        116256 of 232448 bytes (h100)
digest      7bb722904dd0bd31
regenerate  attnc emit causal --dim 64,64 --dtype bf16 --device h100 --form online --shape
            4,4096 --heads 16,16 --backend gluon --backward --no-deterministic
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# the copies go by other names since Triton 3.9
tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

if hasattr(tma, "async_atomic_add"):
    tma_add = tma.async_atomic_add
else:
    from triton._C.libtriton import ir

    # the instruction has no name in Gluon before Triton 3.9
    @gl._core.builtin
    def tma_add(tensor_desc, coord, src, _semantic=None):
        coord = _semantic._convert_to_ir_values(coord, require_i64=False)
        kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
        _semantic.builder.create_async_tma_reduce(kind, tensor_desc.handle, coord, src.handle)


@gluon.jit(do_not_specialize=["TQ", "HQ"])
def causal_clear(
    o,  # [B, TQ, HQ, V]
    dlse,  # [B, HQ, TQ]
    do,  # [B, TQ, HQ, V]
    delta,  # [B, HQ, TQ]: what normalising gives back
    dq_sum,  # [B, TQ, HQ, K]: dq over its scale
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    TQ,
    HQ,
):
    K: gl.constexpr = 64
    V: gl.constexpr = 64
    BT: gl.constexpr = 64
    BK: gl.constexpr = 64
    BV: gl.constexpr = 64
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, TILE)
    CHANNELS: gl.constexpr = gl.SliceLayout(0, TILE)
    # one program: BT rows of one query head
    NT = gl.cdiv(TQ, BT)
    i_t = gl.program_id(0) % NT
    # numbers of elements pass 2**31
    i_bh = (gl.program_id(0) // NT).to(gl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    r_t = gl.arange(0, BT, ROWS)
    o_t = i_t * BT + r_t
    m_t = o_t < TQ
    o_k = gl.arange(0, BK, CHANNELS)
    o_v = gl.arange(0, BV, CHANNELS)
    start_t = i_t.to(gl.int64) * BT
    p_o = o + ((i_b * TQ + start_t) * HQ + i_h) * V
    p_dq_sum = dq_sum + ((i_b * TQ + start_t) * HQ + i_h) * K
    p_do = do + i_b * stride_do_b + i_h * stride_do_h + start_t * stride_do_t
    p_dlse = dlse + i_bh * TQ + start_t
    p_delta = delta + i_bh * TQ + start_t

    # [BT, BV]
    b_do = gl.load(
        p_do + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
        mask=m_t[:, None],
        other=0.0,
    )

    # [BT, BV]
    b_o = gl.load(
        p_o + r_t[:, None] * HQ * V + o_v[None, :],
        mask=m_t[:, None],
        other=0.0,
    )
    b_dl = gl.load(
        p_dlse + r_t,
        mask=m_t,
        other=0.0,
    )

    # what normalising gives back: do . o
    b_d = gl.sum(b_do.to(gl.float32) * b_o.to(gl.float32), 1) - b_dl
    gl.store(
        p_delta + r_t,
        b_d,
        mask=m_t,
    )

    # what keys give dq is added to this
    b_dq = gl.zeros([BT, BK], gl.float32, TILE)

    # [BT, BK]
    gl.store(
        p_dq_sum + r_t[:, None] * HQ * K + o_k[None, :],
        b_dq,
        mask=m_t[:, None],
    )


@gluon.jit
def causal_dqkv_tile(TQ, TK, HQ, HKV):
    BT: gl.constexpr = 64
    BS: gl.constexpr = 128
    # one program: BS keys of one key/value head, and the rows that see them
    NT = gl.cdiv(TK, BS)
    i_s = gl.program_id(0) % NT
    i_bh = gl.program_id(0) // NT
    i_b = i_bh // HKV
    i_hkv = i_bh % HKV
    # the first and the last key
    first = i_s * BS
    last = gl.minimum(first + BS, TK) - 1
    # some key is seen by a row of [lo, hi); every key is seen by all of [full_lo, full_hi)
    hi = TQ
    full_hi = TQ
    lo = gl.maximum(0, first - (TK - TQ))
    full_lo = gl.maximum(0, last - (TK - TQ))
    lo = gl.minimum(lo, hi) // BT * BT
    full_lo = gl.minimum(gl.cdiv(full_lo, BT) * BT, gl.cdiv(hi, BT) * BT)
    full_hi = gl.maximum(full_hi // BT * BT, full_lo)
    return i_s, i_b, i_hkv, lo, full_lo, full_hi, hi


@gluon.jit
def causal_dqkv_producer(q, k, v, do, lse, delta, tiles, barriers, sizes):
    BT: gl.constexpr = 64
    BS: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    LANES: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    # one warp: copies what the program holds, then tile after tile of what it meets
    s_k, s_v, s_q, s_do, s_m, s_d = tiles
    held_full, first_full, first_free, second_full, second_free, rows_full = barriers
    TQ, TK, HQ, HKV = sizes
    i_s, i_b, i_hkv, lo, _full_lo, _full_hi, hi = causal_dqkv_tile(TQ, TK, HQ, HKV)
    for group in gl.static_range(NW):
        here = i_s * BS + group * BW
        mbarrier.expect(held_full.index(group), k.block_type.nbytes + v.block_type.nbytes)
        tma_load(k, [i_b, i_hkv, here, 0], held_full.index(group), s_k.index(group))
        tma_load(v, [i_b, i_hkv, here, 0], held_full.index(group), s_v.index(group))
    n_tiles = gl.cdiv(gl.maximum(hi - lo, 0), BT)
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        p_lse = lse + (i_b.to(gl.int64) * HQ + i_h) * TQ
        p_delta = delta + (i_b.to(gl.int64) * HQ + i_h) * TQ
        for n in range(n_tiles):
            there = lo + n * BT
            slot = (i_g * n_tiles + n) % STAGES
            phase = ((i_g * n_tiles + n) // STAGES) & 1
            o_t = there + gl.arange(0, BT, LANES)
            m_t = o_t < TQ
            b_m = gl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = gl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
            b_d = gl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            mbarrier.wait(first_free.index(slot), phase ^ 1)
            mbarrier.expect(first_full.index(slot), q.block_type.nbytes)
            tma_load(q, [i_b, i_h, there, 0], first_full.index(slot), s_q.index(slot))
            s_m.index(slot).store(b_m)
            s_d.index(slot).store(b_d)
            mbarrier.arrive(rows_full.index(slot), count=1)
            mbarrier.wait(second_free.index(slot), phase ^ 1)
            mbarrier.expect(second_full.index(slot), do.block_type.nbytes)
            tma_load(do, [i_b, i_h, there, 0], second_full.index(slot), s_do.index(slot))


@gluon.jit
def causal_dqkv_consumer(dk, dv, dq_sum, tiles, barriers, exchange, sizes, GROUP: gl.constexpr):
    BT: gl.constexpr = 64
    BK: gl.constexpr = 64
    BV: gl.constexpr = 64
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    TOTALS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    BP: gl.constexpr = 32
    PARTS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOTALS, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, SCORES)
    # one warp group: BW of the program's keys
    s_k, s_v, s_q, s_do, s_m, s_d = tiles
    held_full, first_full, first_free, second_full, second_free, rows_full = barriers
    s_ds, s_dq, pairs_full, keys_read = exchange
    TQ, TK, HQ, HKV = sizes
    i_s, i_b, i_hkv, lo, full_lo, full_hi, hi = causal_dqkv_tile(TQ, TK, HQ, HKV)

    # r_ counts in the tile, o_ in the tensor; b_i is a row's position, aligned to the last key
    i_s = i_s * NW + GROUP
    r_t = gl.arange(0, BT, COLUMNS)
    o_s = i_s * BW + gl.arange(0, BW, ROWS)
    m_s = o_s < TK
    # numbers of elements pass 2**31
    i_b = i_b.to(gl.int64)

    # what the program holds: a group's part of dq is of the keys of all
    for group in gl.static_range(NW):
        mbarrier.wait(held_full.index(group), 0)
    own_k = s_k.index(GROUP).reshape([BW, BK])
    own_v = s_v.index(GROUP).reshape([BW, BV])

    # accumulator, K channels
    b_dk = gl.zeros([BW, BK], gl.float32, TOTALS)

    # accumulator, V channels
    b_dv = gl.zeros([BW, BV], gl.float32, TOTALS)

    zeros = gl.zeros([BW, BT], gl.float32, SCORES)
    part = gl.zeros([BW, BP], gl.float32, PARTS)

    # dq is added a step late: in the first one, zeros to the first tile of rows
    s_ds.index(GROUP).store(gl.zeros([BW, BT], dk.dtype, SCORES))
    fence_async_shared()
    mbarrier.arrive(pairs_full.index(0), count=1)
    before_h = i_hkv * (HQ // HKV)
    before_t = lo
    if (i_s + 1) * BW > TK:  # a key past the last one: the mask decides
        full_hi = full_lo
    n_tiles = gl.cdiv(gl.maximum(hi - lo, 0), BT)
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g

        # rows left of the full tiles: the mask decides
        for i_t in range(lo, full_lo, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            # 0, unknown to the compiler: what it made of own tiles before the loop would spill
            zero = n // 1073741824
            own_k = s_k.index(GROUP + zero).reshape([BW, BK])
            own_v = s_v.index(GROUP + zero).reshape([BW, BV])
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # exp(score - lse)
            b_p = gl.exp2(b_s * 0.18033688011112042 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = gl.where(m_st, b_p, 0.0)
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            ds = b_g.to(dk.dtype)
            left = gl.convert_layout(ds, LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)

            # dq of the step before: the pairs of all groups are there by now
            mbarrier.wait(pairs_full.index(n % 2), (n // 2) & 1)
            b_dst = s_ds.index(n % 2 * NW)
            t_k = s_k.index(zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, part, use_acc=False, is_async=True)
            b_dst = s_ds.index(n % 2 * NW + 1)
            t_k = s_k.index(1 + zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, b_dq, is_async=True)
            s_ds.index((n + 1) % 2 * NW + GROUP).store(ds)
            fence_async_shared()
            b_dv, b_dk, b_dq = warpgroup_mma_wait(0, deps=(b_dv, b_dk, b_dq))
            mbarrier.arrive(pairs_full.index((n + 1) % 2), count=1)
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)
            tma.store_wait(0)
            s_dq.index(GROUP + zero).reshape([BW, BP]).store(b_dq)
            fence_async_shared()
            there = [i_b.to(gl.int32), before_h, before_t, GROUP * BP]
            tma_add(dq_sum, there, s_dq.index(GROUP))
            before_h, before_t = i_h, i_t

        # full tiles: every row sees every key, no mask
        for i_t in range(full_lo, full_hi, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            # 0, unknown to the compiler: what it made of own tiles before the loop would spill
            zero = n // 1073741824
            own_k = s_k.index(GROUP + zero).reshape([BW, BK])
            own_v = s_v.index(GROUP + zero).reshape([BW, BV])
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # exp(score - lse)
            b_p = gl.exp2(b_s * 0.18033688011112042 - b_m[None, :])
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            ds = b_g.to(dk.dtype)
            left = gl.convert_layout(ds, LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)

            # dq of the step before: the pairs of all groups are there by now
            mbarrier.wait(pairs_full.index(n % 2), (n // 2) & 1)
            b_dst = s_ds.index(n % 2 * NW)
            t_k = s_k.index(zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, part, use_acc=False, is_async=True)
            b_dst = s_ds.index(n % 2 * NW + 1)
            t_k = s_k.index(1 + zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, b_dq, is_async=True)
            s_ds.index((n + 1) % 2 * NW + GROUP).store(ds)
            fence_async_shared()
            b_dv, b_dk, b_dq = warpgroup_mma_wait(0, deps=(b_dv, b_dk, b_dq))
            mbarrier.arrive(pairs_full.index((n + 1) % 2), count=1)
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)
            tma.store_wait(0)
            s_dq.index(GROUP + zero).reshape([BW, BP]).store(b_dq)
            fence_async_shared()
            there = [i_b.to(gl.int32), before_h, before_t, GROUP * BP]
            tma_add(dq_sum, there, s_dq.index(GROUP))
            before_h, before_t = i_h, i_t

        # rows right of the full tiles: the mask decides
        for i_t in range(full_hi, hi, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            # 0, unknown to the compiler: what it made of own tiles before the loop would spill
            zero = n // 1073741824
            own_k = s_k.index(GROUP + zero).reshape([BW, BK])
            own_v = s_v.index(GROUP + zero).reshape([BW, BV])
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # exp(score - lse)
            b_p = gl.exp2(b_s * 0.18033688011112042 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = gl.where(m_st, b_p, 0.0)
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            ds = b_g.to(dk.dtype)
            left = gl.convert_layout(ds, LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)

            # dq of the step before: the pairs of all groups are there by now
            mbarrier.wait(pairs_full.index(n % 2), (n // 2) & 1)
            b_dst = s_ds.index(n % 2 * NW)
            t_k = s_k.index(zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, part, use_acc=False, is_async=True)
            b_dst = s_ds.index(n % 2 * NW + 1)
            t_k = s_k.index(1 + zero).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
            b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, b_dq, is_async=True)
            s_ds.index((n + 1) % 2 * NW + GROUP).store(ds)
            fence_async_shared()
            b_dv, b_dk, b_dq = warpgroup_mma_wait(0, deps=(b_dv, b_dk, b_dq))
            mbarrier.arrive(pairs_full.index((n + 1) % 2), count=1)
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)
            tma.store_wait(0)
            s_dq.index(GROUP + zero).reshape([BW, BP]).store(b_dq)
            fence_async_shared()
            there = [i_b.to(gl.int32), before_h, before_t, GROUP * BP]
            tma_add(dq_sum, there, s_dq.index(GROUP))
            before_h, before_t = i_h, i_t

    # dq of the last step; no group reads keys any more
    n = n_tiles * (HQ // HKV)
    mbarrier.wait(pairs_full.index(n % 2), (n // 2) & 1)
    b_dst = s_ds.index(n % 2 * NW)
    t_k = s_k.index(0).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
    b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, part, use_acc=False, is_async=True)
    b_dst = s_ds.index(n % 2 * NW + 1)
    t_k = s_k.index(1).reshape([BW, BK]).slice(GROUP * BP, BP, 1)
    b_dq = warpgroup_mma(b_dst.permute((1, 0)), t_k, b_dq, is_async=True)
    b_dq = warpgroup_mma_wait(0, deps=(b_dq,))
    mbarrier.arrive(keys_read.index(0), count=1)
    tma.store_wait(0)
    s_dq.index(GROUP).reshape([BW, BP]).store(b_dq)
    fence_async_shared()
    there = [i_b.to(gl.int32), before_h, before_t, GROUP * BP]
    tma_add(dq_sum, there, s_dq.index(GROUP))
    mbarrier.wait(keys_read.index(0), 0)

    # ds/dk = scale * q
    b_dk = b_dk * 0.125

    # through the buffers of what the group held; the copy engine leaves out what is past the end
    here = i_s * BW
    own_k.store(b_dk.to(dk.dtype))
    own_v.store(b_dv.to(dv.dtype))
    fence_async_shared()
    tma_store(dk, [i_b.to(gl.int32), i_hkv, here, 0], s_k.index(GROUP))
    tma_store(dv, [i_b.to(gl.int32), i_hkv, here, 0], s_v.index(GROUP))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def causal_dqkv(
    q,  # [B, HQ, TQ, K] in tiles [BT, BK]
    k,  # [B, HKV, TK, K] in tiles [BW, BK]
    v,  # [B, HKV, TK, V] in tiles [BW, BV]
    lse,  # [B, HQ, TQ]: natural log
    do,  # [B, HQ, TQ, V] in tiles [BT, BV]
    delta,  # [B, HQ, TQ]: what normalising gives back
    dk,  # [B, HKV, TK, K] in tiles [BW, BK]
    dv,  # [B, HKV, TK, V] in tiles [BW, BV]
    dq_sum,  # [B, HQ, TQ, K] in tiles [BW, BP]
    TQ,
    TK,
    HQ,
    HKV,
):
    BT: gl.constexpr = 64
    BK: gl.constexpr = 64
    BV: gl.constexpr = 64
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    BP: gl.constexpr = 32
    PAIRS: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    NUMBERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    s_k = gl.allocate_shared_memory(k.dtype, [NW, 1, 1, BW, BK], k.layout)
    s_v = gl.allocate_shared_memory(v.dtype, [NW, 1, 1, BW, BV], v.layout)
    s_q = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, BT, BK], q.layout)
    s_do = gl.allocate_shared_memory(do.dtype, [STAGES, 1, 1, BT, BV], do.layout)
    s_m = gl.allocate_shared_memory(gl.float32, [STAGES, BT], NUMBERS)
    s_d = gl.allocate_shared_memory(gl.float32, [STAGES, BT], NUMBERS)
    s_ds = gl.allocate_shared_memory(k.dtype, [2 * NW, BW, BT], PAIRS)
    s_dq = gl.allocate_shared_memory(gl.float32, [NW, 1, 1, BW, BP], dq_sum.layout)

    # a tile is full when its copy has landed, and free when every consumer has read it
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    held_full = gl.allocate_shared_memory(gl.int64, [NW, 1], BARRIER)
    first_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    first_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    rows_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    # pairs of a step are full when every consumer's are there; two steps have some
    pairs_full = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    keys_read = gl.allocate_shared_memory(gl.int64, [1, 1], BARRIER)
    mbarrier.init(keys_read.index(0), count=NW)
    for step in gl.static_range(2):
        mbarrier.init(pairs_full.index(step), count=NW)
    for group in gl.static_range(NW):
        mbarrier.init(held_full.index(group), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(first_full.index(slot), count=1)
        mbarrier.init(first_free.index(slot), count=NW)
        mbarrier.init(second_full.index(slot), count=1)
        mbarrier.init(second_free.index(slot), count=NW)
        mbarrier.init(rows_full.index(slot), count=1)

    tiles = (s_k, s_v, s_q, s_do, s_m, s_d)
    barriers = (held_full, first_full, first_free, second_full, second_free, rows_full)
    exchange = (s_ds, s_dq, pairs_full, keys_read)
    sizes = (TQ, TK, HQ, HKV)
    # warps, and registers a thread: the first group has what the others leave
    gl.warp_specialize(
        [
            (causal_dqkv_consumer, (dk, dv, dq_sum, tiles, barriers, exchange, sizes, 0)),
            (causal_dqkv_consumer, (dk, dv, dq_sum, tiles, barriers, exchange, sizes, 1)),
            (causal_dqkv_producer, (q, k, v, do, lse, delta, tiles, barriers, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


@gluon.jit(do_not_specialize=["TQ", "HQ"])
def causal_cast(
    dq_sum,  # [B, TQ, HQ, K]: dq over its scale
    dq,  # [B, TQ, HQ, K]
    TQ,
    HQ,
):
    K: gl.constexpr = 64
    BT: gl.constexpr = 64
    BK: gl.constexpr = 64
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROWS: gl.constexpr = gl.SliceLayout(1, TILE)
    CHANNELS: gl.constexpr = gl.SliceLayout(0, TILE)
    # one program: BT rows of one query head
    NT = gl.cdiv(TQ, BT)
    i_t = gl.program_id(0) % NT
    # numbers of elements pass 2**31
    i_bh = (gl.program_id(0) // NT).to(gl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    r_t = gl.arange(0, BT, ROWS)
    o_t = i_t * BT + r_t
    m_t = o_t < TQ
    o_k = gl.arange(0, BK, CHANNELS)
    start_t = i_t.to(gl.int64) * BT
    p_dq = dq + ((i_b * TQ + start_t) * HQ + i_h) * K
    p_dq_sum = dq_sum + ((i_b * TQ + start_t) * HQ + i_h) * K
    b_dq = gl.load(
        p_dq_sum + r_t[:, None] * HQ * K + o_k[None, :],
        mask=m_t[:, None],
        other=0.0,
    )

    # ds/dq = scale * k
    b_dq = b_dq * 0.125

    # [BT, BK]
    gl.store(
        p_dq + r_t[:, None] * HQ * K + o_k[None, :],
        b_dq.to(dq.dtype.element_ty),
        mask=m_t[:, None],
    )


def tiled(x, rows, columns):
    """x [B, T, H, D] for the copy engine, as [B, H, T, D] in tiles; past its edges stands 0."""
    bits = 8 * x.element_size()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=4)
    return TensorDescriptor.from_tensor(x.transpose(1, 2), [1, 1, rows, columns], layout)


def backward(q, k, v, o, lse, do, dlse):
    """Gradients by the online form, for K = 64, V = 64.

    q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv.
    """
    B, TQ, HQ, _ = q.shape
    TK, HKV = k.shape[1:3]
    dq = torch.empty((B, TQ, HQ, 64), dtype=q.dtype, device=q.device)
    # programs add to it in any order
    dq_sum = torch.empty((B, TQ, HQ, 64), dtype=torch.float32, device=q.device)
    dk = torch.empty((B, TK, HKV, 64), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, TK, HKV, 64), dtype=q.dtype, device=q.device)
    delta = torch.empty((B, HQ, TQ), dtype=torch.float32, device=q.device)

    causal_clear[(triton.cdiv(TQ, 64) * B * HQ,)](
        o,
        dlse,
        do,
        delta,
        dq_sum,
        *do.stride(),
        TQ,
        HQ,
        num_warps=4,
        num_stages=1,
    )

    causal_dqkv[(triton.cdiv(TK, 128) * B * HKV,)](
        tiled(q, 64, 64),
        tiled(k, 64, 64),
        tiled(v, 64, 64),
        lse,
        tiled(do, 64, 64),
        delta,
        tiled(dk, 64, 64),
        tiled(dv, 64, 64),
        tiled(dq_sum, 64, 32),
        TQ,
        TK,
        HQ,
        HKV,
        num_warps=4,
        maxnreg=168,
    )

    causal_cast[(triton.cdiv(TQ, 64) * B * HQ,)](
        dq_sum,
        dq,
        TQ,
        HQ,
        num_warps=4,
        num_stages=1,
    )

    return dq, dk, dv
