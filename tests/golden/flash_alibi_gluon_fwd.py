"""flash_alibi: online forward, emitted by attnc.

variant     feature_map softmax, scale rsqrt(d), score s - slope[h] * (i - j), mask causal,
            normalize softmax
dims        K=128 V=128, bf16 in, fp32 accumulators
plan        online: BT=128 BS=128 BK=128 BV=128 NW=2 P=132, 12 warps, 2 stages
sram        197036 of 232448 bytes (h100)
digest      65fee6b10e6f9221
regenerate  attnc emit flash_alibi --dim 128,128 --dtype bf16 --device h100 --form online
            --shape 4,4096 --heads 16,16 --backend gluon
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


# BT rows a place, BW of them a consumer; BS keys a step; columns; consumers; tiles in flight
BT = gl.constexpr(128)
BW = gl.constexpr(64)
BS = gl.constexpr(128)
BK = gl.constexpr(128)
BV = gl.constexpr(128)
NW = gl.constexpr(2)
STAGES = gl.constexpr(2)

# how a warp group holds scores, values, weights (the left side of a product), rows and keys
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
VALUES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, VALUES.value, 2))
ROWS = gl.constexpr(gl.SliceLayout(1, SCORES.value))
ROWS_OF_VALUES = gl.constexpr(gl.SliceLayout(1, VALUES.value))
COLUMNS = gl.constexpr(gl.SliceLayout(0, SCORES.value))


@gluon.jit
def flash_alibi_online_turns(B, TQ, HQ):
    # how many places this program takes
    places = B * HQ * gl.cdiv(TQ, BT)
    pairs = gl.cdiv(places, 2)
    turns = gl.cdiv(pairs - gl.program_id(0), gl.num_programs(0))
    last = 2 * (gl.program_id(0) + (turns - 1) * gl.num_programs(0)) + 1
    return 2 * turns - gl.maximum(last + 1 - places, 0)


@gluon.jit
def flash_alibi_online_place(turn):
    # where this program is at a turn
    # two neighbours at a time: together they see as many keys as any two
    return 2 * (gl.program_id(0) + turn // 2 * gl.num_programs(0)) + turn % 2


@gluon.jit
def flash_alibi_online_tile(place, TQ, TK, HQ, HKV):
    # one place: BT rows of one query head, and the keys that they see
    NT = gl.cdiv(TQ, BT)
    # the last rows see the most keys, the first ones the fewest: they alternate
    i_m = place % NT
    i_t = i_m // 2 + (1 - i_m % 2) * (NT - 1 - i_m // 2 * 2)
    i_bh = place // NT
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
def flash_alibi_online_copies(turn, done, q, k, v, tiles, barriers, sizes):
    # one place, after `done` tiles of keys: copies its rows, then its keys and values
    b_q, b_k, b_v, _b_out = tiles
    q_full, q_free, k_full, k_free, v_full, v_free = barriers
    _B, TQ, TK, HQ, HKV = sizes
    place = flash_alibi_online_place(turn)
    i_t, i_b, i_h, i_hkv, _full_hi, hi = flash_alibi_online_tile(place, TQ, TK, HQ, HKV)
    for group in gl.static_range(NW):
        mbarrier.wait(q_free.index(group), (turn & 1) ^ 1)
        mbarrier.expect(q_full.index(group), q.block_type.nbytes)
        tma_load(q, [i_b, i_h, i_t * BT + group * BW, 0], q_full.index(group), b_q.index(group))
    # the first tile is there even where no key is seen: the mask hides all of it
    n_tiles = gl.maximum(gl.cdiv(hi, BS), 1)
    for n in range(n_tiles):
        i_s = n * BS
        slot = (done + n) % STAGES
        phase = ((done + n) // STAGES) & 1
        mbarrier.wait(k_free.index(slot), phase ^ 1)
        mbarrier.expect(k_full.index(slot), k.block_type.nbytes)
        tma_load(k, [i_b, i_hkv, i_s, 0], k_full.index(slot), b_k.index(slot))
        mbarrier.wait(v_free.index(slot), phase ^ 1)
        mbarrier.expect(v_full.index(slot), v.block_type.nbytes)
        tma_load(v, [i_b, i_hkv, i_s, 0], v_full.index(slot), b_v.index(slot))
    return done + n_tiles


@gluon.jit
def flash_alibi_online_producer(q, k, v, tiles, barriers, sizes):
    # one warp: its copies run ahead into the next place, while the last one is written
    B, TQ, _TK, HQ, _HKV = sizes
    done = 0
    for turn in range(flash_alibi_online_turns(B, TQ, HQ)):
        done = flash_alibi_online_copies(turn, done, q, k, v, tiles, barriers, sizes)


@gluon.jit
def flash_alibi_online_rows(
    turn,
    done,
    u_slope,
    o,
    lse,
    strides,
    tiles,
    barriers,
    sizes,
    GROUP: gl.constexpr,
):
    # one place, after `done` tiles of keys: BW of its rows
    b_q, b_k, b_v, b_out = tiles
    q_full, q_free, k_full, k_free, v_full, v_free = barriers
    _B, TQ, TK, HQ, HKV = sizes
    (stride_u_slope_h,) = strides
    place = flash_alibi_online_place(turn)
    i_t, i_b, i_h, _i_hkv, full_hi, hi = flash_alibi_online_tile(place, TQ, TK, HQ, HKV)

    # r_ counts in the tile, o_ in the tensor; b_i is the row's position, aligned to the last key
    i_row = i_t * BT + GROUP * BW
    r_t = gl.arange(0, BW, ROWS)
    r_s = gl.arange(0, BS, COLUMNS)
    o_t = i_row + r_t
    m_t = o_t < TQ
    b_i = o_t + (TK - TQ)
    # numbers of elements pass 2**31
    i_b = i_b.to(gl.int64)
    i_h = i_h.to(gl.int64)
    p_lse = lse + (i_b * HQ + i_h) * TQ + i_row
    b_u_slope = gl.load(u_slope + i_h * stride_u_slope_h).to(gl.float32)

    # running maximum, in log2
    b_m = gl.full([BW], float("-inf"), gl.float32, ROWS)

    # running sum
    b_l = gl.zeros([BW], gl.float32, ROWS)

    # accumulator
    b_o = gl.zeros([BW, BV], gl.float32, VALUES)

    # indices as numbers, exact to 2**24
    f_i = b_i.to(gl.float32)

    own_q = b_q.index(GROUP)
    rows = own_q.reshape([BW, BK])
    zeros = gl.zeros([BW, BS], gl.float32, SCORES)

    # the first tile of keys, alone: no weights wait for their values
    i_s = 0
    first_slot = done % STAGES
    mbarrier.wait(q_full.index(GROUP), turn & 1)
    mbarrier.wait(k_full.index(first_slot), (done // STAGES) & 1)
    keys = b_k.index(first_slot).reshape([BS, BK]).permute((1, 0))
    b_s = warpgroup_mma(rows, keys, zeros, use_acc=False, is_async=True)
    o_s = i_s + r_s
    b_s = warpgroup_mma_wait(0, deps=(b_s,))
    mbarrier.arrive(k_free.index(first_slot), count=1)

    # the declared score, in log2
    f_j = o_s.to(gl.float32)
    b_s = b_s * 0.08838834764831845
    b_s = b_s - b_u_slope * (f_i[:, None] - f_j[None, :])
    b_s = b_s * 1.4426950408889634

    # what the mask hides weighs exp(-inf) = 0
    m_st = o_s[None, :] <= b_i[:, None]
    b_s = gl.where(m_st, b_s, float("-inf"))

    # online softmax: the new maximum rescales what was summed so far
    b_mn = gl.maximum(b_m, gl.max(b_s, 1))
    b_ms = gl.where(b_mn == float("-inf"), 0.0, b_mn)
    b_a = gl.exp2(b_m - b_ms)
    b_p = gl.exp2(b_s - b_ms[:, None])
    b_l = b_l * b_a + gl.sum(b_p, 1)
    b_m = b_mn
    b_w = gl.convert_layout(b_p.to(o.dtype), WEIGHTS)

    # full tiles: every row sees every key, no mask
    for i_s in range(BS, full_hi, BS):
        n = done + i_s // BS
        slot = n % STAGES
        before = (n - 1) % STAGES
        mbarrier.wait(k_full.index(slot), (n // STAGES) & 1)
        keys = b_k.index(slot).reshape([BS, BK]).permute((1, 0))
        b_s = warpgroup_mma(rows, keys, zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((n - 1) // STAGES) & 1)
        values = b_v.index(before).reshape([BS, BV])
        b_o = warpgroup_mma(b_w, values, b_o, is_async=True)
        o_s = i_s + r_s
        b_s = warpgroup_mma_wait(1, deps=(b_s,))
        mbarrier.arrive(k_free.index(slot), count=1)

        # the declared score, in log2
        f_j = o_s.to(gl.float32)
        b_s = b_s * 0.08838834764831845
        b_s = b_s - b_u_slope * (f_i[:, None] - f_j[None, :])
        b_s = b_s * 1.4426950408889634

        # online softmax: the new maximum rescales what was summed so far
        b_mn = gl.maximum(b_m, gl.max(b_s, 1))
        b_ms = gl.where(b_mn == float("-inf"), 0.0, b_mn)
        b_a = gl.exp2(b_m - b_ms)
        b_p = gl.exp2(b_s - b_ms[:, None])
        b_l = b_l * b_a + gl.sum(b_p, 1)
        b_m = b_mn

        # the last tile's values are in: now the accumulator may be rescaled
        b_o = warpgroup_mma_wait(0, deps=(b_o,))
        mbarrier.arrive(v_free.index(before), count=1)
        b_o = b_o * gl.convert_layout(b_a, ROWS_OF_VALUES)[:, None]
        b_w = gl.convert_layout(b_p.to(o.dtype), WEIGHTS)

    # keys right of the full tiles: the mask decides
    for i_s in range(gl.maximum(full_hi, BS), hi, BS):
        n = done + i_s // BS
        slot = n % STAGES
        before = (n - 1) % STAGES
        mbarrier.wait(k_full.index(slot), (n // STAGES) & 1)
        keys = b_k.index(slot).reshape([BS, BK]).permute((1, 0))
        b_s = warpgroup_mma(rows, keys, zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((n - 1) // STAGES) & 1)
        values = b_v.index(before).reshape([BS, BV])
        b_o = warpgroup_mma(b_w, values, b_o, is_async=True)
        o_s = i_s + r_s
        b_s = warpgroup_mma_wait(1, deps=(b_s,))
        mbarrier.arrive(k_free.index(slot), count=1)

        # the declared score, in log2
        f_j = o_s.to(gl.float32)
        b_s = b_s * 0.08838834764831845
        b_s = b_s - b_u_slope * (f_i[:, None] - f_j[None, :])
        b_s = b_s * 1.4426950408889634

        # what the mask hides weighs exp(-inf) = 0
        m_st = o_s[None, :] <= b_i[:, None]
        b_s = gl.where(m_st, b_s, float("-inf"))

        # online softmax: the new maximum rescales what was summed so far
        b_mn = gl.maximum(b_m, gl.max(b_s, 1))
        b_ms = gl.where(b_mn == float("-inf"), 0.0, b_mn)
        b_a = gl.exp2(b_m - b_ms)
        b_p = gl.exp2(b_s - b_ms[:, None])
        b_l = b_l * b_a + gl.sum(b_p, 1)
        b_m = b_mn

        # the last tile's values are in: now the accumulator may be rescaled
        b_o = warpgroup_mma_wait(0, deps=(b_o,))
        mbarrier.arrive(v_free.index(before), count=1)
        b_o = b_o * gl.convert_layout(b_a, ROWS_OF_VALUES)[:, None]
        b_w = gl.convert_layout(b_p.to(o.dtype), WEIGHTS)

    # the rows have met all keys: their buffer may be filled for the next place
    mbarrier.arrive(q_free.index(GROUP), count=1)

    # the last tile of values
    done += gl.maximum(gl.cdiv(hi, BS), 1)
    n = done - 1
    mbarrier.wait(v_full.index(n % STAGES), (n // STAGES) & 1)
    values = b_v.index(n % STAGES).reshape([BS, BV])
    b_o = warpgroup_mma(b_w, values, b_o, is_async=True)
    b_o = warpgroup_mma_wait(0, deps=(b_o,))
    mbarrier.arrive(v_free.index(n % STAGES), count=1)

    # a row that saw nothing gives 0, and a log-sum-exp of -inf
    b_o = b_o / gl.convert_layout(gl.where(b_l > 0.0, b_l, 1.0), ROWS_OF_VALUES)[:, None]
    b_lse = b_m * 0.6931471805599453 + gl.log(b_l)
    gl.store(
        p_lse + r_t,
        b_lse,
        mask=m_t,
    )

    # [BW, BV], once the last place's are on their way; the copy engine leaves rows past TQ out
    own_out = b_out.index(GROUP)
    tma.store_wait(0)
    own_out.reshape([BW, BV]).store(b_o.to(o.dtype))
    fence_async_shared()
    tma_store(o, [i_b.to(gl.int32), i_h.to(gl.int32), i_row, 0], own_out)
    return done


@gluon.jit
def flash_alibi_online_consumer(
    u_slope,
    o,
    lse,
    strides,
    tiles,
    barriers,
    sizes,
    GROUP: gl.constexpr,
):
    # one warp group: its rows of one place after another
    B, TQ, _TK, HQ, _HKV = sizes
    done = 0
    for turn in range(flash_alibi_online_turns(B, TQ, HQ)):
        done = flash_alibi_online_rows(
            turn, done, u_slope, o, lse, strides, tiles, barriers, sizes, GROUP
        )
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["B", "TQ", "TK", "HQ", "HKV"])
def flash_alibi_online(
    q,  # [B, HQ, TQ, K] in tiles [BW, BK]
    k,  # [B, HKV, TK, K] in tiles [BS, BK]
    v,  # [B, HKV, TK, V] in tiles [BS, BV]
    u_slope,  # [h]
    o,  # [B, HQ, TQ, V] in tiles [BW, BV]
    lse,  # [B, HQ, TQ]: natural log
    stride_u_slope_h,
    B,
    TQ,
    TK,
    HQ,
    HKV,
):
    b_q = gl.allocate_shared_memory(q.dtype, [NW, 1, 1, BW, BK], q.layout)
    b_k = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, BS, BK], k.layout)
    b_v = gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, BS, BV], v.layout)
    b_out = gl.allocate_shared_memory(o.dtype, [NW, 1, 1, BW, BV], o.layout)

    # a tile is full when its copy has landed, and free when every consumer has read it
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [NW, 1], BARRIER)
    q_free = gl.allocate_shared_memory(gl.int64, [NW, 1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for group in gl.static_range(NW):
        mbarrier.init(q_full.index(group), count=1)
        mbarrier.init(q_free.index(group), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_full.index(slot), count=1)
        mbarrier.init(v_full.index(slot), count=1)
        mbarrier.init(k_free.index(slot), count=NW)
        mbarrier.init(v_free.index(slot), count=NW)

    tiles = (b_q, b_k, b_v, b_out)
    barriers = (q_full, q_free, k_full, k_free, v_full, v_free)
    sizes = (B, TQ, TK, HQ, HKV)
    strides = (stride_u_slope_h,)
    # warps, and registers a thread: the first group has what the others leave
    gl.warp_specialize(
        [
            (flash_alibi_online_consumer, (u_slope, o, lse, strides, tiles, barriers, sizes, 0)),
            (flash_alibi_online_consumer, (u_slope, o, lse, strides, tiles, barriers, sizes, 1)),
            (flash_alibi_online_producer, (q, k, v, tiles, barriers, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


def tiled(x, rows, columns):
    """x [B, T, H, D] for the copy engine, as [B, H, T, D] in tiles; past its edges stands 0."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor.from_tensor(x.transpose(1, 2), [1, 1, rows, columns], layout)


def forward(q, k, v, slope):
    """Attention by the online form, for K = 128, V = 128.

    q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V].
    Returns o [B, TQ, HQ, V] and lse [B, HQ, TQ].
    """
    B, TQ, HQ, _ = q.shape
    TK, HKV = k.shape[1:3]
    o = torch.empty((B, TQ, HQ, 128), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, HQ, TQ), dtype=torch.float32, device=q.device)
    flash_alibi_online[(min(132, triton.cdiv(TQ, 128) * B * HQ),)](
        tiled(q, 64, 128),
        tiled(k, 128, 128),
        tiled(v, 128, 128),
        slope,
        tiled(o, 64, 128),
        lse,
        *slope.stride(),
        B,
        TQ,
        TK,
        HQ,
        HKV,
        num_warps=4,
        maxnreg=168,
    )

    return o, lse
