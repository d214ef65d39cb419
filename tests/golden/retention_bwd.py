"""retention: chunked backward, emitted by attnc.

variant     feature_map identity, scale rsqrt(d), mask causal, log_decay -slope[h], normalize
            none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        state: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        dstate: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dscan: BC=64 BE=512, 4 warps, 1 stages
plan        walk_dq: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        walk_dkv: BC=64 BK=64 BV=64, 4 warps, 3 stages
sram        90112 of 232448 bytes (h100)
digest      c114e8299fb217bc
regenerate  attnc emit retention --dim 64,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_state(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    u_slope,  # [h]
    states,  # [B, HS, NS, FP, V]
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: BV columns of one segment of one state
    NV = tl.cdiv(V, BV)
    i_v = tl.program_id(0) % NV
    i_n = tl.program_id(1)
    i_bh = (tl.program_id(0) // NV).to(tl.int64)
    i_b = i_bh // HS
    i_hs = i_bh % HS
    i_h = i_hs * (HQ // HS)
    i_hkv = i_hs // (HS // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)

    # the chunks of this segment, in order
    for i_c in range(first, last):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2(b_gl - b_g)
        b_l = tl.exp2(b_gl)
        b_vu = b_v * b_u[:, None]
        b_vu = b_vu.to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_scan(
    states,  # [B, HS, NS, FP, V]
    u_slope,  # [h]
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    V: tl.constexpr,
    BC: tl.constexpr,
    BE: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: BE elements of one state
    SLOT: tl.constexpr = FP * V
    NE = tl.cdiv(SLOT, BE)
    i_bh = (tl.program_id(0) // NE).to(tl.int64)
    i_h = i_bh % HS * (HQ // HS)
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state before the first token
    b_h = tl.zeros([BE], tl.float32)

    # from segment to segment
    for i_n in range(NS):
        # what segment i_n folded from zero gives way to what came before it
        b_x = tl.load(
            p_states + i_n * SLOT + o_e,
            mask=m_e,
            other=0.0,
        )
        tl.store(
            p_states + i_n * SLOT + o_e,
            b_h,
            mask=m_e,
        )
        b_gs = tl.minimum(CPS * BC, T - i_n * CPS * BC) * b_c
        b_h = b_h * tl.exp2(b_gs) + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_dstate(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    states,  # [B, HQ, NS, FP, V]
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: BV columns of one segment of one query head
    NV = tl.cdiv(V, BV)
    i_v = tl.program_id(0) % NV
    i_n = tl.program_id(1)
    i_bh = (tl.program_id(0) // NV).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)

    # the chunks of this segment, the last one first
    for i_c in range(last - 1, first - 1, -1):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_do = b_do * 0.125
        b_do = b_do.to(do.dtype.element_ty)

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # decay from the chunk's start to each row, and over the whole chunk
        b_rl = tl.exp2(b_g)
        b_l = tl.exp2(b_gl)
        b_dou = b_do * b_rl[:, None]
        b_dou = b_dou.to(do.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_dou, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_dscan(
    states,  # [B, HQ, NS, FP, V]
    u_slope,  # [h]
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    V: tl.constexpr,
    BC: tl.constexpr,
    BE: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: BE elements of the gradient of one state
    SLOT: tl.constexpr = FP * V
    NE = tl.cdiv(SLOT, BE)
    i_bh = (tl.program_id(0) // NE).to(tl.int64)
    i_h = i_bh % HQ
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # nothing comes after
    b_h = tl.zeros([BE], tl.float32)

    # from segment to segment, the last one first
    for i_n in range(NS - 1, -1, -1):
        # what segment i_n folded from zero gives way to what comes after it
        b_x = tl.load(
            p_states + i_n * SLOT + o_e,
            mask=m_e,
            other=0.0,
        )
        tl.store(
            p_states + i_n * SLOT + o_e,
            b_h,
            mask=m_e,
        )
        b_gs = tl.minimum(CPS * BC, T - i_n * CPS * BC) * b_c
        b_h = b_h * tl.exp2(b_gs) + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_walk_dq(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    states,  # [B, HS, NS, FP, V]
    dq,  # [B, T, HQ, K]
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: one segment of one query head
    i_bh = tl.program_id(0).to(tl.int64)
    i_n = tl.program_id(1)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hs = i_h // (HQ // HS)
    i_hkv = i_h // (HQ // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    # the first segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_dq = dq + (i_b * T * HQ + i_h) * K
    p_states = states + ((i_b * HS + i_hs) * NS + i_n) * (FP * V)
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state before this segment
    r_f0 = o_k
    b_h0 = tl.load(
        p_states + r_f0[:, None] * V + o_v[None, :],
        mask=(r_f0[:, None] < n_f),
        other=0.0,
    )

    # the chunks of this segment, in order
    for i_c in range(first, last):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_do = b_do * 0.125
        b_do = b_do.to(v.dtype.element_ty)

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # decay from key to query, 0 where the query is before the key
        b_e = tl.where(r_c[:, None] >= r_c[None, :], tl.exp2(b_g[:, None] - b_g[None, :]), 0.0)

        # gradient of the weights
        b_dw = tl.dot(b_do, tl.trans(b_v))

        # gradient of the scores
        b_ds = b_dw * b_e

        # [BC, BC] @ [BC, BK]
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k)

        # decay from the chunk's start to each row
        b_rl = tl.exp2(b_g)
        b_dog = b_do * b_rl[:, None]
        b_dog = b_dog.to(v.dtype.element_ty)

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2(b_gl - b_g)
        b_l = tl.exp2(b_gl)
        b_vu = b_v * b_u[:, None]
        b_vu = b_vu.to(v.dtype.element_ty)

        # [BC, BV] @ [BV, BK]
        b_dq = tl.dot(b_dog, tl.trans(b_h0.to(v.dtype.element_ty)), b_dq)
        b_h0 = b_h0 * b_l

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)

        # [BC, BK]
        p_dqt = p_dq + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dqt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dq.to(dq.dtype.element_ty),
            mask=m_t[:, None],
        )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def retention_walk_dkv(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    states,  # [B, HQ, NS, FP, V]
    dk,  # [B, T, HQ, K]
    dv,  # [B, T, HQ, V]
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: one segment of one query head
    i_bh = tl.program_id(0).to(tl.int64)
    i_n = tl.program_id(1)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hkv = i_h // (HQ // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    # the last segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n < NS - 1, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_dk = dk + (i_b * T * HQ + i_h) * K
    p_dv = dv + (i_b * T * HQ + i_h) * V
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # what the state after this segment leads to
    r_f0 = o_k
    b_h0 = tl.load(
        p_states + r_f0[:, None] * V + o_v[None, :],
        mask=(r_f0[:, None] < n_f),
        other=0.0,
    )

    # the chunks of this segment, the last one first
    for i_c in range(last - 1, first - 1, -1):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BK]
        p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_do = b_do * 0.125
        b_do = b_do.to(v.dtype.element_ty)

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # inside the chunk: the scores again
        b_s = tl.dot(b_k, tl.trans(b_q))
        b_p = b_s

        # decay from key to query, 0 where the query is before the key
        b_e = tl.where(r_c[None, :] >= r_c[:, None], tl.exp2(b_g[None, :] - b_g[:, None]), 0.0)
        b_p = b_p * b_e

        # gradient of the weights
        b_dw = tl.dot(b_v, tl.trans(b_do))

        # gradient of the scores
        b_ds = b_dw * b_e

        # [BC, BC] @ [BC, BK]
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q)

        # [BC, BC] @ [BC, BV]
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do)

        # decay from each key to the chunk's end
        b_u = tl.exp2(b_gl - b_g)
        b_vu = b_v * b_u[:, None]
        b_vu = b_vu.to(v.dtype.element_ty)
        b_ku = b_k * b_u[:, None]
        b_ku = b_ku.to(v.dtype.element_ty)

        # decay from the chunk's start to each row, and over the whole chunk
        b_rl = tl.exp2(b_g)
        b_l = tl.exp2(b_gl)
        b_dou = b_do * b_rl[:, None]
        b_dou = b_dou.to(v.dtype.element_ty)

        # [BC, BV] @ [BV, BK]
        b_dk = tl.dot(b_vu, tl.trans(b_h0.to(v.dtype.element_ty)), b_dk)

        # [BC, BK] @ [BK, BV]
        b_dv = tl.dot(b_ku, b_h0.to(v.dtype.element_ty), b_dv)
        b_h0 = b_h0 * b_l

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_dou, b_h0)

        # [BC, BK]
        p_dkt = p_dk + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dkt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dk.to(dk.dtype.element_ty),
            mask=m_t[:, None],
        )

        # [BC, BV]
        p_dvt = p_dv + tl.cast(i_c * BC, tl.int64) * HQ * V
        tl.store(
            p_dvt + r_c[:, None] * HQ * V + o_v[None, :],
            b_dv.to(dv.dtype.element_ty),
            mask=m_t[:, None],
        )


def backward(q, k, v, u_slope, do):
    """Gradients by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv.
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HQ
    NV = triton.cdiv(64, 64)
    dq = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)

    # as many segments as 264 programs hold, each at least 4 chunks long
    NC = triton.cdiv(T, 64)
    NS = max(1, min(264 // (B * HQ), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    # the state before each segment, and the gradient of the state after it
    states = torch.empty((B, HS, NS, 4096), dtype=torch.float32, device=q.device)
    dstates = torch.empty((B, HQ, NS, 4096), dtype=torch.float32, device=q.device)

    if NS > 1:
        retention_state[(NV * B * HS, NS)](
            k,
            v,
            u_slope,
            states,
            *k.stride(),
            *v.stride(),
            *u_slope.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            K=64,
            V=64,
            BC=64,
            BK=64,
            BV=64,
            FP=64,
            num_warps=4,
            num_stages=3,
        )

        retention_scan[(triton.cdiv(4096, 512) * B * HS,)](
            states,
            u_slope,
            *u_slope.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            V=64,
            BC=64,
            BE=512,
            F=64,
            FP=64,
            num_warps=4,
            num_stages=1,
        )

        retention_dstate[(NV * B * HQ, NS)](
            q,
            do,
            u_slope,
            dstates,
            *q.stride(),
            *do.stride(),
            *u_slope.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            K=64,
            V=64,
            BC=64,
            BK=64,
            BV=64,
            FP=64,
            num_warps=4,
            num_stages=3,
        )

        retention_dscan[(triton.cdiv(4096, 512) * B * HQ,)](
            dstates,
            u_slope,
            *u_slope.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            V=64,
            BC=64,
            BE=512,
            F=64,
            FP=64,
            num_warps=4,
            num_stages=1,
        )

    retention_walk_dq[(B * HQ, NS)](
        k,
        v,
        do,
        u_slope,
        states,
        dq,
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=3,
    )

    retention_walk_dkv[(B * HQ, NS)](
        q,
        k,
        v,
        do,
        u_slope,
        dstates,
        dk,
        dv,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=3,
    )

    if HQ > HKV:
        # a key/value head's gradients are the sums of those of its group
        dk, dv = (x.unflatten(2, (HKV, -1)).sum(3) for x in (dk, dv))
    return dq, dk, dv
