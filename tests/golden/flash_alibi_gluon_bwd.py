"""flash_alibi: online backward, emitted by attnc.

variant     feature_map softmax, scale rsqrt(d), score s - slope[h] * (i - j), mask causal,
            normalize softmax
dims        K=128 V=128, bf16 in, fp32 accumulators
plan        dq: BT=128 BS=128 BK=128 BV=128 NW=2, 12 warps, 2 stages
plan        dkv: BT=64 BS=128 BK=128 BV=128 NW=2, 12 warps, 2 stages
sram        197100 of 232448 bytes (h100)
digest      50c028bc4e765dd3
regenerate  attnc emit flash_alibi --dim 128,128 --dtype bf16 --device h100 --form online
            --shape 4,4096 --heads 16,16 --backend gluon --backward
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


@gluon.jit
def flash_alibi_dq_tile(TQ, TK, HQ, HKV):
    BT: gl.constexpr = 128
    BS: gl.constexpr = 128
    # one program: BT rows of one query head, and the keys that they see
    NT = gl.cdiv(TQ, BT)
    # the last rows see the most keys: they start first
    i_t = NT - 1 - gl.program_id(0) % NT
    i_bh = gl.program_id(0) // NT
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hkv = i_h // (HQ // HKV)
    # positions of the first and the last row
    first = i_t * BT + TK - TQ
    last = gl.minimum(first + BT, TK) - 1
    # some row sees a key of [lo, hi); every row sees all of [full_lo, full_hi)
    hi = gl.minimum(TK, gl.maximum(last + 1, 0))
    full_hi = gl.minimum(TK, gl.maximum(first + 1, 0))
    full_hi = full_hi // BS * BS
    return i_t, i_b, i_h, i_hkv, full_hi, hi


@gluon.jit
def flash_alibi_dq_producer(q, k, v, do, tiles, barriers, sizes):
    BT: gl.constexpr = 128
    BS: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    # one warp: copies what the program holds, then tile after tile of what it meets
    s_q, s_do, s_k, s_v = tiles
    held_full, first_full, first_free, second_full, second_free = barriers
    TQ, TK, HQ, HKV = sizes
    i_t, i_b, i_h, i_hkv, _full_hi, hi = flash_alibi_dq_tile(TQ, TK, HQ, HKV)
    for group in gl.static_range(NW):
        here = i_t * BT + group * BW
        mbarrier.expect(held_full.index(group), q.block_type.nbytes + do.block_type.nbytes)
        tma_load(q, [i_b, i_h, here, 0], held_full.index(group), s_q.index(group))
        tma_load(do, [i_b, i_h, here, 0], held_full.index(group), s_do.index(group))
    n_tiles = gl.cdiv(hi, BS)
    for n in range(n_tiles):
        there = n * BS
        slot = n % STAGES
        phase = (n // STAGES) & 1
        mbarrier.wait(first_free.index(slot), phase ^ 1)
        mbarrier.expect(first_full.index(slot), k.block_type.nbytes)
        tma_load(k, [i_b, i_hkv, there, 0], first_full.index(slot), s_k.index(slot))
        mbarrier.wait(second_free.index(slot), phase ^ 1)
        mbarrier.expect(second_full.index(slot), v.block_type.nbytes)
        tma_load(v, [i_b, i_hkv, there, 0], second_full.index(slot), s_v.index(slot))


@gluon.jit
def flash_alibi_dq_consumer(
    o,
    lse,
    dlse,
    u_slope,
    dq,
    delta,
    du_slope_h,
    strides,
    tiles,
    barriers,
    sizes,
    GROUP: gl.constexpr,
):
    V: gl.constexpr = 128
    BT: gl.constexpr = 128
    BS: gl.constexpr = 128
    BK: gl.constexpr = 128
    BV: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    TOTALS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOTALS, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, SCORES)
    ROWS_OF_TOTALS: gl.constexpr = gl.SliceLayout(1, TOTALS)
    CHANNELS: gl.constexpr = gl.SliceLayout(0, TOTALS)
    # one warp group: BW of the program's rows
    s_q, s_do, s_k, s_v = tiles
    held_full, first_full, first_free, second_full, second_free = barriers
    TQ, TK, HQ, HKV = sizes
    (stride_u_slope_h,) = strides
    i_t, i_b, i_h, _i_hkv, full_hi, hi = flash_alibi_dq_tile(TQ, TK, HQ, HKV)

    # r_ counts in the tile, o_ in the tensor; b_i is a row's position, aligned to the last key
    NT = gl.cdiv(TQ, BT) * NW
    i_t = i_t * NW + GROUP
    r_t = gl.arange(0, BW, ROWS)
    r_s = gl.arange(0, BS, COLUMNS)
    o_t = i_t * BW + r_t
    m_t = o_t < TQ
    b_i = o_t + (TK - TQ)
    o_v = gl.arange(0, BV, CHANNELS)
    # numbers of elements pass 2**31
    i_b = i_b.to(gl.int64)
    i_bh = i_b * HQ + i_h
    p_o = o + ((i_b * TQ + i_t * BW) * HQ + i_h) * V
    p_lse = lse + i_bh * TQ + i_t * BW
    p_dlse = dlse + i_bh * TQ + i_t * BW
    p_delta = delta + i_bh * TQ + i_t * BW

    # what the program holds
    mbarrier.wait(held_full.index(GROUP), 0)
    own_q = s_q.index(GROUP).reshape([BW, BK])
    own_do = s_do.index(GROUP).reshape([BW, BV])
    b_do = own_do.load(TOTALS)
    b_u_slope = gl.load(u_slope + i_h.to(gl.int64) * stride_u_slope_h).to(gl.float32)
    b_m = gl.load(
        p_lse + r_t,
        mask=m_t,
        other=0.0,
    )

    # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
    b_m = gl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))

    # [BT, BV]
    b_o = gl.load(
        p_o + gl.convert_layout(r_t, ROWS_OF_TOTALS)[:, None] * HQ * V + o_v[None, :],
        mask=gl.convert_layout(m_t, ROWS_OF_TOTALS)[:, None],
        other=0.0,
    )
    b_dl = gl.load(
        p_dlse + r_t,
        mask=m_t,
        other=0.0,
    )

    # what normalising gives back: do . o
    b_d = gl.convert_layout(gl.sum(b_do.to(gl.float32) * b_o.to(gl.float32), 1), ROWS) - b_dl
    gl.store(
        p_delta + r_t,
        b_d,
        mask=m_t,
    )

    # indices as numbers, exact to 2**24
    f_i = b_i.to(gl.float32)

    # accumulator
    b_dq = gl.zeros([BW, BK], gl.float32, TOTALS)

    # gradient of slope[h]
    b_a_slope_h = gl.zeros([BW], gl.float32, ROWS)

    # what each row's score gradients add up to
    b_z = gl.zeros([BW], gl.float32, ROWS)
    b_w_slope_h = gl.zeros([BW], gl.float32, ROWS)

    zeros = gl.zeros([BW, BS], gl.float32, SCORES)

    # full tiles: every row sees every key, no mask
    for i_s in range(0, full_hi, BS):
        n = i_s // BS
        slot = n % STAGES
        phase = (n // STAGES) & 1
        o_s = i_s + r_s
        mbarrier.wait(first_full.index(slot), phase)
        t_k = s_k.index(slot).reshape([BS, BK])
        b_s = warpgroup_mma(own_q, t_k.permute((1, 0)), zeros, use_acc=False, is_async=True)
        mbarrier.wait(second_full.index(slot), phase)
        t_v = s_v.index(slot).reshape([BS, BV])
        b_dp = warpgroup_mma(own_do, t_v.permute((1, 0)), zeros, use_acc=False, is_async=True)
        f_j = o_s.to(gl.float32)
        b_s = warpgroup_mma_wait(1, deps=(b_s,))

        # the declared score again, and its derivatives
        b_s = b_s * 0.08838834764831845
        b_y0 = f_i[:, None] - f_j[None, :]
        b_e = b_s - b_y0 * b_u_slope
        b_l_slope_h = -b_y0
        b_p = gl.exp2(b_e * 1.4426950408889634 - b_m[:, None])
        b_w_slope_h = b_w_slope_h + gl.sum(b_p * b_l_slope_h, 1)
        b_dp = warpgroup_mma_wait(0, deps=(b_dp,))
        mbarrier.arrive(second_free.index(slot), count=1)

        # gradient of the score
        b_ds = b_p * (b_dp - b_d[:, None])
        b_g = b_ds
        b_a_slope_h = b_a_slope_h + gl.sum(b_ds * b_l_slope_h, 1)
        b_z = b_z + gl.sum(b_ds, 1)
        left = gl.convert_layout(b_g.to(dq.dtype), LEFT)
        b_dq = warpgroup_mma(left, t_k, b_dq, is_async=True)
        b_dq = warpgroup_mma_wait(0, deps=(b_dq,))
        mbarrier.arrive(first_free.index(slot), count=1)

    # keys right of the full tiles: the mask decides
    for i_s in range(full_hi, hi, BS):
        n = i_s // BS
        slot = n % STAGES
        phase = (n // STAGES) & 1
        o_s = i_s + r_s
        m_s = o_s < TK
        mbarrier.wait(first_full.index(slot), phase)
        t_k = s_k.index(slot).reshape([BS, BK])
        b_s = warpgroup_mma(own_q, t_k.permute((1, 0)), zeros, use_acc=False, is_async=True)
        mbarrier.wait(second_full.index(slot), phase)
        t_v = s_v.index(slot).reshape([BS, BV])
        b_dp = warpgroup_mma(own_do, t_v.permute((1, 0)), zeros, use_acc=False, is_async=True)
        f_j = o_s.to(gl.float32)
        b_s = warpgroup_mma_wait(1, deps=(b_s,))

        # the declared score again, and its derivatives
        b_s = b_s * 0.08838834764831845
        b_y0 = f_i[:, None] - f_j[None, :]
        b_e = b_s - b_y0 * b_u_slope
        b_l_slope_h = -b_y0
        b_p = gl.exp2(b_e * 1.4426950408889634 - b_m[:, None])

        # what the mask hides weighs nothing
        m_st = o_s[None, :] <= b_i[:, None]
        m_st = m_st & m_t[:, None] & m_s[None, :]
        b_p = gl.where(m_st, b_p, 0.0)
        b_l_slope_h = gl.where(m_st, b_l_slope_h, 0.0)
        b_w_slope_h = b_w_slope_h + gl.sum(b_p * b_l_slope_h, 1)
        b_dp = warpgroup_mma_wait(0, deps=(b_dp,))
        mbarrier.arrive(second_free.index(slot), count=1)

        # gradient of the score
        b_ds = b_p * (b_dp - b_d[:, None])
        b_g = b_ds
        b_a_slope_h = b_a_slope_h + gl.sum(b_ds * b_l_slope_h, 1)
        b_z = b_z + gl.sum(b_ds, 1)
        left = gl.convert_layout(b_g.to(dq.dtype), LEFT)
        b_dq = warpgroup_mma(left, t_k, b_dq, is_async=True)
        b_dq = warpgroup_mma_wait(0, deps=(b_dq,))
        mbarrier.arrive(first_free.index(slot), count=1)

    # ds/dq = scale * k
    b_dq = b_dq * 0.08838834764831845

    # less what delta's rounding gave each pair of the row
    b_a_slope_h = b_a_slope_h - (b_z - b_dl) * b_w_slope_h
    gl.store(du_slope_h + i_bh * NT + i_t, gl.sum(gl.where(m_t, b_a_slope_h, 0.0), 0))

    # through the buffers of what the group held; the copy engine leaves out what is past the end
    here = i_t * BW
    own_q.store(b_dq.to(dq.dtype))
    fence_async_shared()
    tma_store(dq, [i_b.to(gl.int32), i_h, here, 0], s_q.index(GROUP))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def flash_alibi_dq(
    q,  # [B, HQ, TQ, K] in tiles [BW, BK]
    k,  # [B, HKV, TK, K] in tiles [BS, BK]
    v,  # [B, HKV, TK, V] in tiles [BS, BV]
    o,  # [B, TQ, HQ, V]
    lse,  # [B, HQ, TQ]: natural log
    dlse,  # [B, HQ, TQ]
    do,  # [B, HQ, TQ, V] in tiles [BW, BV]
    u_slope,  # [h]
    dq,  # [B, HQ, TQ, K] in tiles [BW, BK]
    delta,  # [B, HQ, TQ]: what normalising gives back
    du_slope_h,  # [B, HQ, NT]: sums of d slope[h]
    stride_u_slope_h,
    TQ,
    TK,
    HQ,
    HKV,
):
    BS: gl.constexpr = 128
    BK: gl.constexpr = 128
    BV: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    s_q = gl.allocate_shared_memory(q.dtype, [NW, 1, 1, BW, BK], q.layout)
    s_do = gl.allocate_shared_memory(do.dtype, [NW, 1, 1, BW, BV], do.layout)
    s_k = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, BS, BK], k.layout)
    s_v = gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, BS, BV], v.layout)

    # a tile is full when its copy has landed, and free when every consumer has read it
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    held_full = gl.allocate_shared_memory(gl.int64, [NW, 1], BARRIER)
    first_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    first_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for group in gl.static_range(NW):
        mbarrier.init(held_full.index(group), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(first_full.index(slot), count=1)
        mbarrier.init(first_free.index(slot), count=NW)
        mbarrier.init(second_full.index(slot), count=1)
        mbarrier.init(second_free.index(slot), count=NW)

    tiles = (s_q, s_do, s_k, s_v)
    barriers = (held_full, first_full, first_free, second_full, second_free)
    sizes = (TQ, TK, HQ, HKV)
    strides = (stride_u_slope_h,)
    # warps, and registers a thread: the first group has what the others leave
    gl.warp_specialize(
        [
            (
                flash_alibi_dq_consumer,
                (o, lse, dlse, u_slope, dq, delta, du_slope_h, strides, tiles, barriers, sizes, 0),
            ),
            (
                flash_alibi_dq_consumer,
                (o, lse, dlse, u_slope, dq, delta, du_slope_h, strides, tiles, barriers, sizes, 1),
            ),
            (flash_alibi_dq_producer, (q, k, v, do, tiles, barriers, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


@gluon.jit
def flash_alibi_dkv_tile(TQ, TK, HQ, HKV):
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
def flash_alibi_dkv_producer(q, k, v, do, lse, delta, tiles, barriers, sizes):
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
    i_s, i_b, i_hkv, lo, _full_lo, _full_hi, hi = flash_alibi_dkv_tile(TQ, TK, HQ, HKV)
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
def flash_alibi_dkv_consumer(u_slope, dk, dv, strides, tiles, barriers, sizes, GROUP: gl.constexpr):
    BT: gl.constexpr = 64
    BK: gl.constexpr = 128
    BV: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    TOTALS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, TOTALS, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, SCORES)
    # one warp group: BW of the program's keys
    s_k, s_v, s_q, s_do, s_m, s_d = tiles
    held_full, first_full, first_free, second_full, second_free, rows_full = barriers
    TQ, TK, HQ, HKV = sizes
    (stride_u_slope_h,) = strides
    i_s, i_b, i_hkv, lo, full_lo, full_hi, hi = flash_alibi_dkv_tile(TQ, TK, HQ, HKV)

    # r_ counts in the tile, o_ in the tensor; b_i is a row's position, aligned to the last key
    i_s = i_s * NW + GROUP
    r_t = gl.arange(0, BT, COLUMNS)
    o_s = i_s * BW + gl.arange(0, BW, ROWS)
    m_s = o_s < TK
    # numbers of elements pass 2**31
    i_b = i_b.to(gl.int64)

    # what the program holds
    mbarrier.wait(held_full.index(GROUP), 0)
    own_k = s_k.index(GROUP).reshape([BW, BK])
    own_v = s_v.index(GROUP).reshape([BW, BV])

    # accumulator, K channels
    b_dk = gl.zeros([BW, BK], gl.float32, TOTALS)

    # accumulator, V channels
    b_dv = gl.zeros([BW, BV], gl.float32, TOTALS)

    zeros = gl.zeros([BW, BT], gl.float32, SCORES)
    n_tiles = gl.cdiv(gl.maximum(hi - lo, 0), BT)
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        b_u_slope = gl.load(u_slope + i_h.to(gl.int64) * stride_u_slope_h).to(gl.float32)

        # indices as numbers, exact to 2**24
        f_j = o_s.to(gl.float32)

        # rows left of the full tiles: the mask decides
        for i_t in range(lo, full_lo, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            f_i = b_i.to(gl.float32)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # the declared score again, and its derivatives
            b_s = b_s * 0.08838834764831845
            b_y0 = f_i[None, :] - f_j[:, None]
            b_e = b_s - b_y0 * b_u_slope
            b_l_slope_h = -b_y0
            b_p = gl.exp2(b_e * 1.4426950408889634 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = gl.where(m_st, b_p, 0.0)
            b_l_slope_h = gl.where(m_st, b_l_slope_h, 0.0)
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            left = gl.convert_layout(b_g.to(dk.dtype), LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)
            b_dv, b_dk = warpgroup_mma_wait(0, deps=(b_dv, b_dk))
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)

        # full tiles: every row sees every key, no mask
        for i_t in range(full_lo, full_hi, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            o_t = i_t + r_t
            b_i = o_t + (TK - TQ)
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            f_i = b_i.to(gl.float32)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # the declared score again, and its derivatives
            b_s = b_s * 0.08838834764831845
            b_y0 = f_i[None, :] - f_j[:, None]
            b_e = b_s - b_y0 * b_u_slope
            b_l_slope_h = -b_y0
            b_p = gl.exp2(b_e * 1.4426950408889634 - b_m[None, :])
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            left = gl.convert_layout(b_g.to(dk.dtype), LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)
            b_dv, b_dk = warpgroup_mma_wait(0, deps=(b_dv, b_dk))
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)

        # rows right of the full tiles: the mask decides
        for i_t in range(full_hi, hi, BT):
            n = i_g * n_tiles + (i_t - lo) // BT
            slot = n % STAGES
            phase = (n // STAGES) & 1
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            mbarrier.wait(first_full.index(slot), phase)
            t_q = s_q.index(slot).reshape([BT, BK])
            b_s = warpgroup_mma(own_k, t_q.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(second_full.index(slot), phase)
            t_do = s_do.index(slot).reshape([BT, BV])
            b_dp = warpgroup_mma(own_v, t_do.permute((1, 0)), zeros, use_acc=False, is_async=True)
            f_i = b_i.to(gl.float32)
            mbarrier.wait(rows_full.index(slot), phase)
            b_s = warpgroup_mma_wait(1, deps=(b_s,))
            b_m = s_m.index(slot).load(COLUMNS)

            # the declared score again, and its derivatives
            b_s = b_s * 0.08838834764831845
            b_y0 = f_i[None, :] - f_j[:, None]
            b_e = b_s - b_y0 * b_u_slope
            b_l_slope_h = -b_y0
            b_p = gl.exp2(b_e * 1.4426950408889634 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = gl.where(m_st, b_p, 0.0)
            b_l_slope_h = gl.where(m_st, b_l_slope_h, 0.0)
            left = gl.convert_layout(b_p.to(dk.dtype), LEFT)
            b_dv = warpgroup_mma(left, t_do, b_dv, is_async=True)
            b_dp = warpgroup_mma_wait(1, deps=(b_dp,))
            b_d = s_d.index(slot).load(COLUMNS)

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds
            left = gl.convert_layout(b_g.to(dk.dtype), LEFT)
            b_dk = warpgroup_mma(left, t_q, b_dk, is_async=True)
            b_dv, b_dk = warpgroup_mma_wait(0, deps=(b_dv, b_dk))
            mbarrier.arrive(first_free.index(slot), count=1)
            mbarrier.arrive(second_free.index(slot), count=1)

    # ds/dk = scale * q
    b_dk = b_dk * 0.08838834764831845

    # through the buffers of what the group held; the copy engine leaves out what is past the end
    here = i_s * BW
    own_k.store(b_dk.to(dk.dtype))
    own_v.store(b_dv.to(dv.dtype))
    fence_async_shared()
    tma_store(dk, [i_b.to(gl.int32), i_hkv, here, 0], s_k.index(GROUP))
    tma_store(dv, [i_b.to(gl.int32), i_hkv, here, 0], s_v.index(GROUP))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def flash_alibi_dkv(
    q,  # [B, HQ, TQ, K] in tiles [BT, BK]
    k,  # [B, HKV, TK, K] in tiles [BW, BK]
    v,  # [B, HKV, TK, V] in tiles [BW, BV]
    lse,  # [B, HQ, TQ]: natural log
    do,  # [B, HQ, TQ, V] in tiles [BT, BV]
    delta,  # [B, HQ, TQ]: what normalising gives back
    u_slope,  # [h]
    dk,  # [B, HKV, TK, K] in tiles [BW, BK]
    dv,  # [B, HKV, TK, V] in tiles [BW, BV]
    stride_u_slope_h,
    TQ,
    TK,
    HQ,
    HKV,
):
    BT: gl.constexpr = 64
    BK: gl.constexpr = 128
    BV: gl.constexpr = 128
    NW: gl.constexpr = 2
    BW: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    NUMBERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    s_k = gl.allocate_shared_memory(k.dtype, [NW, 1, 1, BW, BK], k.layout)
    s_v = gl.allocate_shared_memory(v.dtype, [NW, 1, 1, BW, BV], v.layout)
    s_q = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, BT, BK], q.layout)
    s_do = gl.allocate_shared_memory(do.dtype, [STAGES, 1, 1, BT, BV], do.layout)
    s_m = gl.allocate_shared_memory(gl.float32, [STAGES, BT], NUMBERS)
    s_d = gl.allocate_shared_memory(gl.float32, [STAGES, BT], NUMBERS)

    # a tile is full when its copy has landed, and free when every consumer has read it
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    held_full = gl.allocate_shared_memory(gl.int64, [NW, 1], BARRIER)
    first_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    first_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    second_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    rows_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
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
    sizes = (TQ, TK, HQ, HKV)
    strides = (stride_u_slope_h,)
    # warps, and registers a thread: the first group has what the others leave
    gl.warp_specialize(
        [
            (flash_alibi_dkv_consumer, (u_slope, dk, dv, strides, tiles, barriers, sizes, 0)),
            (flash_alibi_dkv_consumer, (u_slope, dk, dv, strides, tiles, barriers, sizes, 1)),
            (flash_alibi_dkv_producer, (q, k, v, do, lse, delta, tiles, barriers, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


def tiled(x, rows, columns):
    """x [B, T, H, D] for the copy engine, as [B, H, T, D] in tiles; past its edges stands 0."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor.from_tensor(x.transpose(1, 2), [1, 1, rows, columns], layout)


def backward(q, k, v, u_slope, o, lse, do, dlse):
    """Gradients by the online form, for K = 128, V = 128.

    q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv, du_slope.
    """
    B, TQ, HQ, _ = q.shape
    TK, HKV = k.shape[1:3]
    dq = torch.empty((B, TQ, HQ, 128), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, TK, HKV, 128), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, TK, HKV, 128), dtype=q.dtype, device=q.device)
    delta = torch.empty((B, HQ, TQ), dtype=torch.float32, device=q.device)

    # partial sums of the declared tensors' gradients: each element has one writer
    NT = triton.cdiv(TQ, 128) * 2
    du_slope_h = torch.empty((B, HQ, NT), dtype=torch.float32, device=q.device)

    flash_alibi_dq[(triton.cdiv(TQ, 128) * B * HQ,)](
        tiled(q, 64, 128),
        tiled(k, 128, 128),
        tiled(v, 128, 128),
        o,
        lse,
        dlse,
        tiled(do, 64, 128),
        u_slope,
        tiled(dq, 64, 128),
        delta,
        du_slope_h,
        *u_slope.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        num_warps=4,
        maxnreg=168,
    )

    flash_alibi_dkv[(triton.cdiv(TK, 128) * B * HKV,)](
        tiled(q, 64, 128),
        tiled(k, 64, 128),
        tiled(v, 64, 128),
        lse,
        tiled(do, 64, 128),
        delta,
        u_slope,
        tiled(dk, 64, 128),
        tiled(dv, 64, 128),
        *u_slope.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        num_warps=4,
        maxnreg=168,
    )

    return (
        dq,
        dk,
        dv,
        du_slope_h.sum((0, 2)).to(u_slope.dtype),
    )
