"""hybrid: chunked backward, emitted by attnc.

variant     term (softmax, score s - 0.1 * (i - j), scale rsqrt(d), mask causal & window(63)),
            term (elu(x) + 1, scale 0.125, mask i - j >= 64, factor exp(mix[h])), sink z[h],
            normalize sum
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        delta: BT=64 BV=64, 4 warps, 1 stages
plan        state: BC=64 LAG=1 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        dstate: BC=64 LAG=1 BK=64 BV=64, 4 warps, 3 stages
plan        dscan: BC=64 BE=512, 4 warps, 1 stages
plan        walk_dq: BC=64 LAG=1 BK=64 BV=64, 4 warps, 3 stages
plan        walk_dkv: BC=64 LAG=1 BK=64 BV=64, 4 warps, 3 stages
plan        dq: BC=64 LAG=1 BT=128 BS=64 BK=64 BV=64, 8 warps, 3 stages
plan        dkv: BC=64 LAG=1 BT=32 BS=128 BK=64 BV=64, 8 warps, 3 stages
sram        98816 of 232448 bytes (h100)
digest      1607fc6ff994572d
regenerate  attnc emit hybrid --dim 64,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "HQ"])
def hybrid_delta(
    o,  # [B, T, HQ, V]
    do,  # [B, T, HQ, V]
    dlse,  # [B, HQ, T]
    delta,  # [B, HQ, T]: what normalising gives back
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    T,
    HQ,
    V: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
):
    # one program: BT rows of one query head
    NT = tl.cdiv(T, BT)
    i_t = tl.program_id(0) % NT
    i_bh = (tl.program_id(0) // NT).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ

    r_t = tl.arange(0, BT)
    o_t = i_t * BT + r_t
    o_v = tl.arange(0, BV)
    m_t = o_t < T
    start_t = tl.cast(i_t * BT, tl.int64)
    p_o = o + ((i_b * T + start_t) * HQ + i_h) * V
    p_do = do + i_b * stride_do_b + i_h * stride_do_h + start_t * stride_do_t
    p_dlse = dlse + i_bh * T + start_t
    p_delta = delta + i_bh * T + start_t
    b_dl = tl.load(
        p_dlse + r_t,
        mask=m_t,
        other=0.0,
    )

    # [BT, BV]
    b_o = tl.load(
        p_o + r_t[:, None] * HQ * V + o_v[None, :],
        mask=m_t[:, None],
        other=0.0,
    )

    # [BT, BV]
    b_do = tl.load(
        p_do + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
        mask=m_t[:, None],
        other=0.0,
    )

    # what normalising gives back
    b_d = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1) - b_dl
    tl.store(
        p_delta + r_t,
        b_d,
        mask=m_t,
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_state(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    states,  # [B, HS, NS, SLOT]: FP * V, then FP sums
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
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
    LAG: tl.constexpr,
):
    # one program: BV columns of one segment of one state
    NV = tl.cdiv(V, BV)
    i_v = tl.program_id(0) % NV
    i_n = tl.program_id(1)
    i_bh = (tl.program_id(0) // NV).to(tl.int64)
    i_b = i_bh // HS
    i_hs = i_bh % HS
    i_hkv = i_hs // (HS // HKV)
    # a chunk of keys enters the state LAG chunks later
    first = tl.maximum(i_n * CPS - LAG, 0)
    last = tl.minimum(i_n * CPS + CPS, tl.cdiv(T, BC)) - LAG

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)
    b_z0 = tl.zeros([64], tl.float32)

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

        # phi, in the accumulator's precision
        b_kx = b_k.to(tl.float32)
        b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
        b_k = tl.where(m_t[:, None], b_k, 0.0)
        b_k = b_k.to(v.dtype.element_ty)

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_z0 = b_z0 + tl.sum(b_k.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_v, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(p_states + FP * V + r_f0, b_z0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_scan(
    states,  # [B, HS, NS, SLOT]: FP * V, then FP sums
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
    SLOT: tl.constexpr = FP * V + FP
    NE = tl.cdiv(SLOT, BE)
    i_bh = (tl.program_id(0) // NE).to(tl.int64)
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT

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
        b_h = b_h + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_dstate(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    lse,  # [B, HQ, T]: natural log
    delta,  # [B, HQ, T]: what normalising gives back
    states,  # [B, HQ, NS, SLOT]: FP * V, then FP sums
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
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
    LAG: tl.constexpr,
):
    # one program: BV columns of one segment of one query head
    NV = tl.cdiv(V, BV)
    i_v = tl.program_id(0) % NV
    i_n = tl.program_id(1)
    i_bh = (tl.program_id(0) // NV).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    # the rows that enter here lie LAG chunks after the keys that meet them
    first = i_n * CPS + LAG
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_lse = lse + i_bh * T
    p_delta = delta + i_bh * T
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)
    b_z0 = tl.zeros([64], tl.float32)

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

        # phi, in the accumulator's precision
        b_qx = b_q.to(tl.float32)
        b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
        b_q = tl.where(m_t[:, None], b_q, 0.0)
        b_q = b_q.to(do.dtype.element_ty)

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_m = tl.load(
            p_lse + o_t,
            mask=m_t,
            other=0.0,
        )

        # the normaliser's inverse, and a linear weight's factor
        b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
        b_n = tl.exp2(-tl.maximum(b_m, -96.0)) * 0.125
        b_d = tl.load(
            p_delta + o_t,
            mask=m_t,
            other=0.0,
        )

        # what is over 1 goes to the features, the rest to do
        b_nf = tl.maximum(b_n, 1.0)
        b_n = tl.minimum(b_n, 1.0)
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(do.dtype.element_ty)
        b_d = -b_d * b_n
        b_q = b_q * b_nf[:, None]
        b_q = b_q.to(do.dtype.element_ty)
        b_z0 = b_z0 + tl.sum(b_q.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_do, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(p_states + FP * V + r_f0, b_z0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_dscan(
    states,  # [B, HQ, NS, SLOT]: FP * V, then FP sums
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
    SLOT: tl.constexpr = FP * V + FP
    NE = tl.cdiv(SLOT, BE)
    i_bh = (tl.program_id(0) // NE).to(tl.int64)
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT

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
        b_h = b_h + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_walk_dq(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    lse,  # [B, HQ, T]: natural log
    delta,  # [B, HQ, T]: what normalising gives back
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    states,  # [B, HS, NS, SLOT]: FP * V, then FP sums
    folded_dq,  # [B, T, HQ, K]: by the state
    folded_scores,  # [B, HQ, T]: in the state, the sum of a row's score gradients
    folded_weights,  # [B, HQ, T]: in the state, the sum of a row's weights
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
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
    LAG: tl.constexpr,
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

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_lse = lse + i_bh * T
    p_delta = delta + i_bh * T
    p_folded_scores = folded_scores + i_bh * T
    p_folded_weights = folded_weights + i_bh * T
    p_folded_dq = folded_dq + (i_b * T * HQ + i_h) * K
    p_states = states + ((i_b * HS + i_hs) * NS + i_n) * (FP * V + FP)

    # the state before this segment
    r_f0 = o_k
    b_h0 = tl.load(
        p_states + r_f0[:, None] * V + o_v[None, :],
        mask=(r_f0[:, None] < n_f),
        other=0.0,
    )
    b_z0 = tl.load(
        p_states + FP * V + r_f0,
        mask=r_f0 < n_f,
        other=0.0,
    )

    # the chunks of this segment, in order
    for i_c in range(first, last):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_qx = b_q.to(tl.float32)
        b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
        b_q = tl.where(m_t[:, None], b_q, 0.0)
        b_q = b_q.to(v.dtype.element_ty)

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_m = tl.load(
            p_lse + o_t,
            mask=m_t,
            other=0.0,
        )

        # the normaliser's inverse, and a linear weight's factor
        b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
        b_n = tl.exp2(-tl.maximum(b_m, -96.0)) * 0.125
        b_d = tl.load(
            p_delta + o_t,
            mask=m_t,
            other=0.0,
        )
        b_d = -b_d

        # the keys that enter the state once these rows have read it
        o_l = (i_c - LAG) * BC + r_c
        m_l = (o_l >= 0) & (o_l < T)

        # [BC, BK]
        p_kt = p_k + tl.cast((i_c - LAG) * BC, tl.int64) * stride_k_t
        b_kl = tl.load(
            p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_l[:, None],
            other=0.0,
        )

        # [BC, BV]
        p_vt = p_v + tl.cast((i_c - LAG) * BC, tl.int64) * stride_v_t
        b_vl = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_l[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_klx = b_kl.to(tl.float32)
        b_kl = 1.0 + tl.where(b_klx > 0.0, b_klx, tl.exp(b_klx) - 1.0)
        b_kl = tl.where(m_l[:, None], b_kl, 0.0)
        b_kl = b_kl.to(v.dtype.element_ty)
        b_dq = tl.zeros([BC, BK], tl.float32)

        # what each row's score gradients add up to
        b_r = tl.zeros([BC], tl.float32)

        # and its weights
        b_ws = tl.zeros([BC], tl.float32)

        # [BC, BV] @ [BV, BK]
        b_df = tl.dot(b_do, tl.trans(b_h0.to(v.dtype.element_ty)))
        b_df = b_df + b_d[:, None] * b_z0[None, :]
        b_df = b_df * b_n[:, None]
        b_r = b_r + tl.sum(b_q * b_df, 1)
        b_dq = b_dq + b_df
        b_ws = b_ws + tl.sum(b_q * b_z0[None, :], 1)
        b_z0 = b_z0 + tl.sum(b_kl.to(tl.float32), 0)

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_kl), b_vl, b_h0)

        # [BC, BK]
        p_dqt = p_folded_dq + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dqt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dq,
            mask=m_t[:, None],
        )
        tl.store(
            p_folded_scores + o_t,
            b_r,
            mask=m_t,
        )
        tl.store(
            p_folded_weights + o_t,
            b_ws * b_n,
            mask=m_t,
        )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def hybrid_walk_dkv(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    lse,  # [B, HQ, T]: natural log
    delta,  # [B, HQ, T]: what normalising gives back
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    states,  # [B, HQ, NS, SLOT]: FP * V, then FP sums
    folded_dk,  # [B, T, HQ, K]: by the state
    folded_dv,  # [B, T, HQ, V]: by the state
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_do_b,
    stride_do_t,
    stride_do_h,
    stride_do_v,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
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
    LAG: tl.constexpr,
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
    p_lse = lse + i_bh * T
    p_delta = delta + i_bh * T
    p_folded_dk = folded_dk + (i_b * T * HQ + i_h) * K
    p_folded_dv = folded_dv + (i_b * T * HQ + i_h) * V
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)

    # what the rows after this segment lead to
    r_f0 = o_k
    b_h0 = tl.load(
        p_states + r_f0[:, None] * V + o_v[None, :],
        mask=(r_f0[:, None] < n_f),
        other=0.0,
    )
    b_z0 = tl.load(
        p_states + FP * V + r_f0,
        mask=r_f0 < n_f,
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

        # phi, in the accumulator's precision
        b_kx = b_k.to(tl.float32)
        b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
        b_k = tl.where(m_t[:, None], b_k, 0.0)
        b_k = b_k.to(v.dtype.element_ty)

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )

        # the rows that enter once these keys have met those after them
        o_l = (i_c + LAG) * BC + r_c
        m_l = o_l < T

        # [BC, BK]
        p_qt = p_q + tl.cast((i_c + LAG) * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_l[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_qx = b_q.to(tl.float32)
        b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
        b_q = tl.where(m_l[:, None], b_q, 0.0)
        b_q = b_q.to(v.dtype.element_ty)

        # [BC, BV]
        p_dot = p_do + tl.cast((i_c + LAG) * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_l[:, None],
            other=0.0,
        )
        b_m = tl.load(
            p_lse + o_l,
            mask=m_l,
            other=0.0,
        )

        # the normaliser's inverse, and a linear weight's factor
        b_m = tl.where(m_l & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
        b_n = tl.exp2(-tl.maximum(b_m, -96.0)) * 0.125
        b_d = tl.load(
            p_delta + o_l,
            mask=m_l,
            other=0.0,
        )

        # what is over 1 goes to the features, the rest to do
        b_nf = tl.maximum(b_n, 1.0)
        b_n = tl.minimum(b_n, 1.0)
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(v.dtype.element_ty)
        b_d = -b_d * b_n
        b_q = b_q * b_nf[:, None]
        b_q = b_q.to(v.dtype.element_ty)
        b_dk = tl.zeros([BC, BK], tl.float32)
        b_dv = tl.zeros([BC, BV], tl.float32)

        # [BC, BV] @ [BV, BK]
        b_dk = tl.dot(b_v, tl.trans(b_h0.to(v.dtype.element_ty)), b_dk)
        b_dk = b_dk + b_z0[None, :]

        # [BC, BK] @ [BK, BV]
        b_dv = tl.dot(b_k, b_h0.to(v.dtype.element_ty), b_dv)
        b_z0 = b_z0 + tl.sum(b_q.to(tl.float32) * b_d[:, None], 0)

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_do, b_h0)

        # [BC, BK]
        p_dkt = p_folded_dk + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dkt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dk,
            mask=m_t[:, None],
        )

        # [BC, BV]
        p_dvt = p_folded_dv + tl.cast(i_c * BC, tl.int64) * HQ * V
        tl.store(
            p_dvt + r_c[:, None] * HQ * V + o_v[None, :],
            b_dv,
            mask=m_t[:, None],
        )


@triton.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def hybrid_dq(
    q,  # [B, TQ, HQ, K]
    k,  # [B, TK, HKV, K]
    v,  # [B, TK, HKV, V]
    o,  # [B, TQ, HQ, V]
    lse,  # [B, HQ, TQ]: natural log
    dlse,  # [B, HQ, TQ]
    do,  # [B, TQ, HQ, V]
    u_mix,  # [h]
    u_z,  # [h]
    folded_dq,  # [B, TQ, HQ, K]: by the state
    folded_scores,  # [B, HQ, TQ]: in the state, the sum of a row's score gradients
    folded_weights,  # [B, HQ, TQ]: in the state, the sum of a row's weights
    dq,  # [B, TQ, HQ, K]
    delta,  # [B, HQ, TQ]: what normalising gives back
    du_z_h_sink,  # [B, HQ, NT]: sums of d z[h]
    du_mix_h_factor_term2,  # [B, HQ, NT]: sums of d mix[h]
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
    stride_u_mix_h,
    stride_u_z_h,
    TQ,
    TK,
    HQ,
    HKV,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAG: tl.constexpr,
):
    # one program: BT rows of one query head
    NT = tl.cdiv(TQ, BT)
    # the last rows see the most keys: they start first
    i_t = NT - 1 - tl.program_id(0) % NT
    i_bh = (tl.program_id(0) // NT).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hkv = i_h // (HQ // HKV)

    # r_ counts in the tile, o_ in the tensor; b_i is the row's position, aligned to the last key
    r_t = tl.arange(0, BT)
    r_s = tl.arange(0, BS)
    o_t = i_t * BT + r_t
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_t = o_t < TQ
    b_i = o_t + (TK - TQ)

    start_t = tl.cast(i_t * BT, tl.int64)
    p_q = q + i_b * stride_q_b + i_h * stride_q_h + start_t * stride_q_t
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h + start_t * stride_do_t
    p_o = o + ((i_b * TQ + start_t) * HQ + i_h) * V
    p_dq = dq + ((i_b * TQ + start_t) * HQ + i_h) * K
    p_folded_dq = folded_dq + ((i_b * TQ + start_t) * HQ + i_h) * K
    p_lse = lse + i_bh * TQ + start_t
    p_dlse = dlse + i_bh * TQ + start_t
    p_delta = delta + i_bh * TQ + start_t
    p_folded_scores = folded_scores + i_bh * TQ + start_t
    p_folded_weights = folded_weights + i_bh * TQ + start_t

    # positions of the first and the last row
    first = i_t * BT + TK - TQ
    last = tl.minimum(first + BT, TK) - 1
    b_u_mix = tl.load(u_mix + i_h * stride_u_mix_h).to(tl.float32)
    b_u_z = tl.load(u_z + i_h * stride_u_z_h).to(tl.float32)

    # [BT, BK]
    b_q = tl.load(
        p_q + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # phi, in the accumulator's precision
    b_q2x = b_q.to(tl.float32)
    b_q2 = 1.0 + tl.where(b_q2x > 0.0, b_q2x, tl.exp(b_q2x) - 1.0)
    b_q2 = tl.where(m_t[:, None], b_q2, 0.0)
    b_q2 = b_q2.to(v.dtype.element_ty)

    # [BT, BV]
    b_do = tl.load(
        p_do + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
        mask=m_t[:, None],
        other=0.0,
    )
    b_m = tl.load(
        p_lse + r_t,
        mask=m_t,
        other=0.0,
    )

    # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
    b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))

    # [BT, BV]
    b_o = tl.load(
        p_o + r_t[:, None] * HQ * V + o_v[None, :],
        mask=m_t[:, None],
        other=0.0,
    )
    b_dl = tl.load(
        p_dlse + r_t,
        mask=m_t,
        other=0.0,
    )

    # what normalising gives back: do . o
    b_d = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1) - b_dl

    # the factor of term 2
    b_f2 = tl.exp(b_u_mix)

    # the normaliser's inverse
    b_n = tl.exp2(-tl.maximum(b_m, -96.0))

    # indices as numbers, exact to 2**24
    f_i = b_i.to(tl.float32)

    # accumulator
    b_dq = tl.zeros([BT, BK], tl.float32)

    # accumulator
    b_dq2 = tl.zeros([BT, BK], tl.float32)

    # what each row's score gradients add up to
    b_z = tl.zeros([BT], tl.float32)

    # gradient of the factor of term 2
    b_xf2 = tl.zeros([BT], tl.float32)
    b_wf2 = tl.zeros([BT], tl.float32)

    # what the state of term 2 has given
    b_fq = tl.load(
        p_folded_dq + r_t[:, None] * HQ * K + o_k[None, :],
        mask=m_t[:, None],
        other=0.0,
    )
    b_dq2 = b_dq2 + b_fq * b_f2
    b_fs = tl.load(
        p_folded_scores + r_t,
        mask=m_t,
        other=0.0,
    )
    b_fw = tl.load(
        p_folded_weights + r_t,
        mask=m_t,
        other=0.0,
    )
    b_z = b_z + b_fs * b_f2
    b_xf2 = b_xf2 + b_fs
    b_wf2 = b_wf2 + b_fw

    # the sink's logit, in log2
    b_sink = b_u_z
    b_sink = b_sink * 1.4426950408889634

    # the weight of the sink
    b_ps = tl.exp2(b_sink - b_m)

    # term 1: exp(-i/10 + j/10 + s)
    # some row sees a key of [lo, hi); every row sees all of [full_lo, full_hi)
    hi = tl.minimum(TK, tl.maximum(last + 1, 0))
    full_hi = tl.minimum(TK, tl.maximum(first + 1, 0))
    lo = tl.maximum(0, first - 63)
    full_lo = tl.maximum(0, last - 63)
    lo = tl.minimum(lo, hi) // BS * BS
    full_lo = tl.minimum(tl.cdiv(full_lo, BS) * BS, tl.cdiv(hi, BS) * BS)
    full_hi = tl.maximum(full_hi // BS * BS, full_lo)

    # keys left of the full tiles: the mask decides
    for i_s in range(lo, full_lo, BS):
        o_s = i_s + r_s
        m_s = o_s < TK
        f_j = o_s.to(tl.float32)

        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_s[:, None],
            other=0.0,
        )

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # the scores of the tile again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # the declared score again, and its derivatives
        b_s = b_s * 0.125
        b_e = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
        b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[:, None])

        # what the mask hides weighs nothing
        m_st = (o_s[None, :] >= b_i[:, None] - 63) & (o_s[None, :] <= b_i[:, None])
        m_st = m_st & m_t[:, None] & m_s[None, :]
        b_p = tl.where(m_st, b_p, 0.0)

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # gradient of the score
        b_ds = b_p * (b_dp - b_d[:, None])
        b_g = b_ds * 0.125
        b_z = b_z + tl.sum(b_ds, 1)

        # [BT, BS] @ [BS, BK]
        b_dq = tl.dot(b_g.to(b_k.dtype), b_k, b_dq)

    # full tiles: every row sees every key, no mask
    for i_s in range(full_lo, full_hi, BS):
        o_s = i_s + r_s
        f_j = o_s.to(tl.float32)

        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

        # the scores of the tile again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # the declared score again, and its derivatives
        b_s = b_s * 0.125
        b_e = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
        b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[:, None])

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # gradient of the score
        b_ds = b_p * (b_dp - b_d[:, None])
        b_g = b_ds * 0.125
        b_z = b_z + tl.sum(b_ds, 1)

        # [BT, BS] @ [BS, BK]
        b_dq = tl.dot(b_g.to(b_k.dtype), b_k, b_dq)

    # keys right of the full tiles: the mask decides
    for i_s in range(full_hi, hi, BS):
        o_s = i_s + r_s
        m_s = o_s < TK
        f_j = o_s.to(tl.float32)

        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_s[:, None],
            other=0.0,
        )

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # the scores of the tile again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # the declared score again, and its derivatives
        b_s = b_s * 0.125
        b_e = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
        b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[:, None])

        # what the mask hides weighs nothing
        m_st = (o_s[None, :] >= b_i[:, None] - 63) & (o_s[None, :] <= b_i[:, None])
        m_st = m_st & m_t[:, None] & m_s[None, :]
        b_p = tl.where(m_st, b_p, 0.0)

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # gradient of the score
        b_ds = b_p * (b_dp - b_d[:, None])
        b_g = b_ds * 0.125
        b_z = b_z + tl.sum(b_ds, 1)

        # [BT, BS] @ [BS, BK]
        b_dq = tl.dot(b_g.to(b_k.dtype), b_k, b_dq)

    # term 2: exp(mix[h]) * (s)
    # some row sees a key of [lo, hi); every row sees all of [full_lo, full_hi)
    hi = tl.minimum(TK, tl.maximum(last - 63, 0))
    full_hi = tl.minimum(TK, tl.maximum(first - 63, 0))
    lo = tl.maximum(0, (first // BC - LAG) * BC)
    full_lo = tl.maximum(0, (last // BC - LAG) * BC)
    lo = tl.minimum(lo, hi) // BS * BS
    full_lo = tl.minimum(tl.cdiv(full_lo, BS) * BS, tl.cdiv(hi, BS) * BS)
    full_hi = tl.maximum(full_hi // BS * BS, full_lo)

    # keys left of the full tiles: the mask decides
    for i_s in range(lo, full_lo, BS):
        o_s = i_s + r_s
        m_s = o_s < TK

        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_s[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_kx = b_k.to(tl.float32)
        b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
        b_k = b_k.to(v.dtype.element_ty)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # the scores of the tile again
        b_s = tl.dot(b_q2, tl.trans(b_k))

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # the weight, a polynomial of s, and its gradient times the row's normaliser
        b_p = 0.125 * b_s
        b_dw = b_dp - b_d[:, None]

        # what the mask hides weighs nothing
        m_st = o_s[None, :] <= b_i[:, None] - 64
        m_st = m_st & m_t[:, None] & m_s[None, :]
        m_st = m_st & (o_s[None, :] >= (b_i[:, None] // BC - LAG) * BC)
        b_p = tl.where(m_st, b_p, 0.0)
        b_dw = tl.where(m_st, b_dw, 0.0)
        b_p = b_p * b_n[:, None]
        b_p0 = b_p
        b_p = b_p0 * b_f2

        # gradient of the log of the weight
        b_ds = b_p * b_dw
        b_g = b_dw * 0.125 * (b_n * b_f2)[:, None]
        b_z = b_z + tl.sum(b_ds, 1)
        b_xf2 = b_xf2 + tl.sum(b_p0 * (b_dp - b_d[:, None]), 1)
        b_wf2 = b_wf2 + tl.sum(b_p0, 1)

        # [BT, BS] @ [BS, BK]
        b_dq2 = tl.dot(b_g.to(b_k.dtype), b_k, b_dq2)

    # full tiles: every row sees every key, no mask
    for i_s in range(full_lo, full_hi, BS):
        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

        # phi, in the accumulator's precision
        b_kx = b_k.to(tl.float32)
        b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
        b_k = b_k.to(v.dtype.element_ty)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

        # the scores of the tile again
        b_s = tl.dot(b_q2, tl.trans(b_k))

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # the weight, a polynomial of s, and its gradient times the row's normaliser
        b_p = 0.125 * b_s
        b_dw = b_dp - b_d[:, None]
        b_p = b_p * b_n[:, None]
        b_p0 = b_p
        b_p = b_p0 * b_f2

        # gradient of the log of the weight
        b_ds = b_p * b_dw
        b_g = b_dw * 0.125 * (b_n * b_f2)[:, None]
        b_z = b_z + tl.sum(b_ds, 1)
        b_xf2 = b_xf2 + tl.sum(b_p0 * (b_dp - b_d[:, None]), 1)
        b_wf2 = b_wf2 + tl.sum(b_p0, 1)

        # [BT, BS] @ [BS, BK]
        b_dq2 = tl.dot(b_g.to(b_k.dtype), b_k, b_dq2)

    # keys right of the full tiles: the mask decides
    for i_s in range(full_hi, hi, BS):
        o_s = i_s + r_s
        m_s = o_s < TK

        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_s[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_kx = b_k.to(tl.float32)
        b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
        b_k = b_k.to(v.dtype.element_ty)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # the scores of the tile again
        b_s = tl.dot(b_q2, tl.trans(b_k))

        # do . v
        b_dp = tl.dot(b_do, tl.trans(b_v))

        # the weight, a polynomial of s, and its gradient times the row's normaliser
        b_p = 0.125 * b_s
        b_dw = b_dp - b_d[:, None]

        # what the mask hides weighs nothing
        m_st = o_s[None, :] <= b_i[:, None] - 64
        m_st = m_st & m_t[:, None] & m_s[None, :]
        m_st = m_st & (o_s[None, :] >= (b_i[:, None] // BC - LAG) * BC)
        b_p = tl.where(m_st, b_p, 0.0)
        b_dw = tl.where(m_st, b_dw, 0.0)
        b_p = b_p * b_n[:, None]
        b_p0 = b_p
        b_p = b_p0 * b_f2

        # gradient of the log of the weight
        b_ds = b_p * b_dw
        b_g = b_dw * 0.125 * (b_n * b_f2)[:, None]
        b_z = b_z + tl.sum(b_ds, 1)
        b_xf2 = b_xf2 + tl.sum(b_p0 * (b_dp - b_d[:, None]), 1)
        b_wf2 = b_wf2 + tl.sum(b_p0, 1)

        # [BT, BS] @ [BS, BK]
        b_dq2 = tl.dot(b_g.to(b_k.dtype), b_k, b_dq2)
    b_qx = tl.load(
        p_q + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # through phi
    b_qxc = b_qx.to(tl.float32)
    b_qxs = tl.where(b_qxc > 0.0, 1.0, tl.exp(b_qxc))
    b_dq2 = b_dq2 * b_qxs
    b_dq = b_dq + b_dq2

    # [BT, BK]
    tl.store(
        p_dq + r_t[:, None] * HQ * K + o_k[None, :],
        b_dq.to(dq.dtype.element_ty),
        mask=m_t[:, None],
    )

    # delta without its rounding: a row's score gradients add up to dlse
    b_de = b_z + (1.0 - b_ps) * b_d - b_dl
    tl.store(
        p_delta + r_t,
        b_de,
        mask=m_t,
    )
    b_xf2 = b_xf2 - (b_de - b_d) * b_wf2
    b_xf2 = tl.sum(tl.where(m_t, b_xf2, 0.0), 0)
    b_y = tl.exp(b_u_mix)
    tl.store(du_mix_h_factor_term2 + i_bh * NT + i_t, b_xf2 * b_y)
    b_dsink = -tl.sum(tl.where(m_t, b_ps * b_de, 0.0), 0)
    b_y = 1.0
    tl.store(du_z_h_sink + i_bh * NT + i_t, b_dsink * b_y)


@triton.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def hybrid_dkv(
    q,  # [B, TQ, HQ, K]
    k,  # [B, TK, HKV, K]
    v,  # [B, TK, HKV, V]
    lse,  # [B, HQ, TQ]: natural log
    do,  # [B, TQ, HQ, V]
    delta,  # [B, HQ, TQ]: what normalising gives back
    u_mix,  # [h]
    folded_dk,  # [B, TK, HQ, K]: by the state
    folded_dv,  # [B, TK, HQ, V]: by the state
    dk,  # [B, TK, HKV, K]
    dv,  # [B, TK, HKV, V]
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
    stride_u_mix_h,
    TQ,
    TK,
    HQ,
    HKV,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAG: tl.constexpr,
):
    # one program: BS keys of one key/value head
    NT = tl.cdiv(TK, BS)
    i_s = tl.program_id(0) % NT
    i_bh = (tl.program_id(0) // NT).to(tl.int64)
    i_b = i_bh // HKV
    i_hkv = i_bh % HKV

    # r_ counts in the tile, o_ in the tensor; b_i is a row's position, aligned to the last key
    r_t = tl.arange(0, BT)
    r_s = tl.arange(0, BS)
    o_s = i_s * BS + r_s
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_s = o_s < TK

    start_s = tl.cast(i_s * BS, tl.int64)
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h + start_s * stride_k_t
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h + start_s * stride_v_t
    p_dk = dk + ((i_b * TK + start_s) * HKV + i_hkv) * K
    p_dv = dv + ((i_b * TK + start_s) * HKV + i_hkv) * V

    # the first and the last key
    first = i_s * BS
    last = tl.minimum(first + BS, TK) - 1

    # [BS, BK]
    b_k = tl.load(
        p_k + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
        mask=m_s[:, None],
        other=0.0,
    )

    # phi, in the accumulator's precision
    b_k2x = b_k.to(tl.float32)
    b_k2 = 1.0 + tl.where(b_k2x > 0.0, b_k2x, tl.exp(b_k2x) - 1.0)
    b_k2 = tl.where(m_s[:, None], b_k2, 0.0)
    b_k2 = b_k2.to(v.dtype.element_ty)

    # [BS, BV]
    b_v = tl.load(
        p_v + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
        mask=m_s[:, None],
        other=0.0,
    )

    # accumulator, K channels
    b_dk = tl.zeros([BS, BK], tl.float32)

    # accumulator, K channels
    b_dk2 = tl.zeros([BS, BK], tl.float32)

    # accumulator, V channels
    b_dv = tl.zeros([BS, BV], tl.float32)

    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        p_q = q + i_b * stride_q_b + i_h * stride_q_h
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        p_lse = lse + (i_b * HQ + i_h) * TQ
        p_delta = delta + (i_b * HQ + i_h) * TQ
        p_folded_dk = folded_dk + ((i_b * TK + start_s) * HQ + i_h) * K
        p_folded_dv = folded_dv + ((i_b * TK + start_s) * HQ + i_h) * V
        b_u_mix = tl.load(u_mix + i_h * stride_u_mix_h).to(tl.float32)

        # the factor of term 2
        b_f2 = tl.exp(b_u_mix)

        # what the state of term 2 has given
        b_fk = tl.load(
            p_folded_dk + r_s[:, None] * HQ * K + o_k[None, :],
            mask=m_s[:, None],
            other=0.0,
        )
        b_dk2 = b_dk2 + b_fk * b_f2
        b_fv = tl.load(
            p_folded_dv + r_s[:, None] * HQ * V + o_v[None, :],
            mask=m_s[:, None],
            other=0.0,
        )
        b_dv = b_dv + b_fv * b_f2

        # indices as numbers, exact to 2**24
        f_j = o_s.to(tl.float32)

        # term 1: exp(-i/10 + j/10 + s)
        # some key is seen by a row of [lo, hi); every key is seen by all of [full_lo, full_hi)
        hi = tl.minimum(TQ, tl.maximum(last + 64 - (TK - TQ), 0))
        full_hi = tl.minimum(TQ, tl.maximum(first + 64 - (TK - TQ), 0))
        lo = tl.maximum(0, first - (TK - TQ))
        full_lo = tl.maximum(0, last - (TK - TQ))
        lo = tl.minimum(lo, hi) // BT * BT
        full_lo = tl.minimum(tl.cdiv(full_lo, BT) * BT, tl.cdiv(hi, BT) * BT)
        full_hi = tl.maximum(full_hi // BT * BT, full_lo)

        # rows left of the full tiles: the mask decides
        for i_t in range(lo, full_lo, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            f_i = b_i.to(tl.float32)

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(
                p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
                mask=m_t[:, None],
                other=0.0,
            )

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # the declared score again, and its derivatives
            b_s = b_s * 0.125
            b_e = 0.1 * f_j[:, None] + b_s - 0.1 * f_i[None, :]
            b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = (o_s[:, None] >= b_i[None, :] - 63) & (o_s[:, None] <= b_i[None, :])
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = tl.where(m_st, b_p, 0.0)

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds * 0.125

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

        # full tiles: every row sees every key, no mask
        for i_t in range(full_lo, full_hi, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            f_i = b_i.to(tl.float32)

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k)

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v)
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # the declared score again, and its derivatives
            b_s = b_s * 0.125
            b_e = 0.1 * f_j[:, None] + b_s - 0.1 * f_i[None, :]
            b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[None, :])

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds * 0.125

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

        # rows right of the full tiles: the mask decides
        for i_t in range(full_hi, hi, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)
            f_i = b_i.to(tl.float32)

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(
                p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
                mask=m_t[:, None],
                other=0.0,
            )

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # the declared score again, and its derivatives
            b_s = b_s * 0.125
            b_e = 0.1 * f_j[:, None] + b_s - 0.1 * f_i[None, :]
            b_p = tl.exp2(b_e * 1.4426950408889634 - b_m[None, :])

            # what the mask hides weighs nothing
            m_st = (o_s[:, None] >= b_i[None, :] - 63) & (o_s[:, None] <= b_i[None, :])
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = tl.where(m_st, b_p, 0.0)

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # gradient of the score
            b_ds = b_p * (b_dp - b_d[None, :])
            b_g = b_ds * 0.125

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

        # term 2: exp(mix[h]) * (s)
        # some key is seen by a row of [lo, hi); every key is seen by all of [full_lo, full_hi)
        hi = tl.minimum(TQ, (last // BC + LAG + 1) * BC)
        full_hi = tl.minimum(TQ, (first // BC + LAG + 1) * BC)
        lo = tl.maximum(0, first + 64 - (TK - TQ))
        full_lo = tl.maximum(0, last + 64 - (TK - TQ))
        lo = tl.minimum(lo, hi) // BT * BT
        full_lo = tl.minimum(tl.cdiv(full_lo, BT) * BT, tl.cdiv(hi, BT) * BT)
        full_hi = tl.maximum(full_hi // BT * BT, full_lo)

        # rows left of the full tiles: the mask decides
        for i_t in range(lo, full_lo, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(
                p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
                mask=m_t[:, None],
                other=0.0,
            )

            # phi, in the accumulator's precision
            b_qx = b_q.to(tl.float32)
            b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
            b_q = b_q.to(v.dtype.element_ty)

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))

            # the normaliser's inverse
            b_n = tl.exp2(-tl.maximum(b_m, -96.0))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k2, tl.trans(b_q))

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # the weight, a polynomial of s, and its gradient times the row's normaliser
            b_p = 0.125 * b_s
            b_dw = b_dp - b_d[None, :]

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :] - 64
            m_st = m_st & m_t[None, :] & m_s[:, None]
            m_st = m_st & (o_s[:, None] >= (b_i[None, :] // BC - LAG) * BC)
            b_p = tl.where(m_st, b_p, 0.0)
            b_dw = tl.where(m_st, b_dw, 0.0)
            b_p = b_p * b_n[None, :]
            b_p0 = b_p
            b_p = b_p0 * b_f2

            # gradient of the log of the weight
            b_ds = b_p * b_dw
            b_g = b_dw * 0.125 * (b_n * b_f2)[None, :]

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk2 = tl.dot(b_g.to(b_q.dtype), b_q, b_dk2)

        # full tiles: every row sees every key, no mask
        for i_t in range(full_lo, full_hi, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k)

            # phi, in the accumulator's precision
            b_qx = b_q.to(tl.float32)
            b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
            b_q = b_q.to(v.dtype.element_ty)

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v)
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))

            # the normaliser's inverse
            b_n = tl.exp2(-tl.maximum(b_m, -96.0))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k2, tl.trans(b_q))

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # the weight, a polynomial of s, and its gradient times the row's normaliser
            b_p = 0.125 * b_s
            b_dw = b_dp - b_d[None, :]
            b_p = b_p * b_n[None, :]
            b_p0 = b_p
            b_p = b_p0 * b_f2

            # gradient of the log of the weight
            b_ds = b_p * b_dw
            b_g = b_dw * 0.125 * (b_n * b_f2)[None, :]

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk2 = tl.dot(b_g.to(b_q.dtype), b_q, b_dk2)

        # rows right of the full tiles: the mask decides
        for i_t in range(full_hi, hi, BT):
            o_t = i_t + r_t
            m_t = o_t < TQ
            b_i = o_t + (TK - TQ)

            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(
                p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
                mask=m_t[:, None],
                other=0.0,
            )

            # phi, in the accumulator's precision
            b_qx = b_q.to(tl.float32)
            b_q = 1.0 + tl.where(b_qx > 0.0, b_qx, tl.exp(b_qx) - 1.0)
            b_q = b_q.to(v.dtype.element_ty)

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )
            b_m = tl.load(
                p_lse + o_t,
                mask=m_t,
                other=0.0,
            )

            # in log2; a row that saw nothing, and padding, weigh exp(-inf) = 0
            b_m = tl.where(m_t & (b_m > float("-inf")), b_m * 1.4426950408889634, float("inf"))

            # the normaliser's inverse
            b_n = tl.exp2(-tl.maximum(b_m, -96.0))
            b_d = tl.load(
                p_delta + o_t,
                mask=m_t,
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k2, tl.trans(b_q))

            # do . v
            b_dp = tl.dot(b_v, tl.trans(b_do))

            # the weight, a polynomial of s, and its gradient times the row's normaliser
            b_p = 0.125 * b_s
            b_dw = b_dp - b_d[None, :]

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :] - 64
            m_st = m_st & m_t[None, :] & m_s[:, None]
            m_st = m_st & (o_s[:, None] >= (b_i[None, :] // BC - LAG) * BC)
            b_p = tl.where(m_st, b_p, 0.0)
            b_dw = tl.where(m_st, b_dw, 0.0)
            b_p = b_p * b_n[None, :]
            b_p0 = b_p
            b_p = b_p0 * b_f2

            # gradient of the log of the weight
            b_ds = b_p * b_dw
            b_g = b_dw * 0.125 * (b_n * b_f2)[None, :]

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk2 = tl.dot(b_g.to(b_q.dtype), b_q, b_dk2)
    b_kx = tl.load(
        p_k + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
        mask=m_s[:, None],
        other=0.0,
    )

    # through phi
    b_kxc = b_kx.to(tl.float32)
    b_kxs = tl.where(b_kxc > 0.0, 1.0, tl.exp(b_kxc))
    b_dk2 = b_dk2 * b_kxs
    b_dk = b_dk + b_dk2

    # [BS, BK]
    tl.store(
        p_dk + r_s[:, None] * HKV * K + o_k[None, :],
        b_dk.to(dk.dtype.element_ty),
        mask=m_s[:, None],
    )

    # [BS, BV]
    tl.store(
        p_dv + r_s[:, None] * HKV * V + o_v[None, :],
        b_dv.to(dv.dtype.element_ty),
        mask=m_s[:, None],
    )


def backward(q, k, v, u_mix, u_z, o, lse, do, dlse):
    """Gradients by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv, du_mix, du_z.
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HKV
    # queries and keys are the same tokens
    TQ, TK = T, T
    NV = triton.cdiv(64, 64)
    dq = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, T, HKV, 64), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, T, HKV, 64), dtype=q.dtype, device=q.device)
    delta = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)

    # what the state gives of each query head: the passes over pairs go on from it
    folded_dq = torch.empty((B, T, HQ, 64), dtype=torch.float32, device=q.device)
    folded_dk = torch.empty((B, T, HQ, 64), dtype=torch.float32, device=q.device)
    folded_dv = torch.empty((B, T, HQ, 64), dtype=torch.float32, device=q.device)
    folded_scores = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)
    folded_weights = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)

    # as many segments as 264 programs hold, each at least 4 chunks long
    NC = triton.cdiv(T, 64)
    NS = max(1, min(264 // (B * HQ), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    # the state before each segment, and what the rows after it lead to
    states = torch.empty((B, HS, NS, 4160), dtype=torch.float32, device=q.device)
    dstates = torch.empty((B, HQ, NS, 4160), dtype=torch.float32, device=q.device)

    # partial sums of the declared tensors' gradients: each element has one writer
    NT = triton.cdiv(TQ, 128)
    du_z_h_sink = torch.empty((B, HQ, NT), dtype=torch.float32, device=q.device)
    du_mix_h_factor_term2 = torch.empty((B, HQ, NT), dtype=torch.float32, device=q.device)

    hybrid_delta[(triton.cdiv(T, 64) * B * HQ,)](
        o,
        do,
        dlse,
        delta,
        *do.stride(),
        T,
        HQ,
        V=64,
        BT=64,
        BV=64,
        num_warps=4,
        num_stages=1,
    )

    if NS > 1:
        hybrid_state[(NV * B * HS, NS)](
            k,
            v,
            states,
            *k.stride(),
            *v.stride(),
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
            LAG=1,
            num_warps=4,
            num_stages=3,
        )

        hybrid_scan[(triton.cdiv(4160, 512) * B * HS,)](
            states,
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

        hybrid_dstate[(NV * B * HQ, NS)](
            q,
            do,
            lse,
            delta,
            dstates,
            *q.stride(),
            *do.stride(),
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
            LAG=1,
            num_warps=4,
            num_stages=3,
        )

        hybrid_dscan[(triton.cdiv(4160, 512) * B * HQ,)](
            dstates,
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

    hybrid_walk_dq[(B * HQ, NS)](
        q,
        do,
        lse,
        delta,
        k,
        v,
        states,
        folded_dq,
        folded_scores,
        folded_weights,
        *q.stride(),
        *do.stride(),
        *k.stride(),
        *v.stride(),
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
        LAG=1,
        num_warps=4,
        num_stages=3,
    )

    hybrid_walk_dkv[(B * HQ, NS)](
        q,
        do,
        lse,
        delta,
        k,
        v,
        dstates,
        folded_dk,
        folded_dv,
        *q.stride(),
        *do.stride(),
        *k.stride(),
        *v.stride(),
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
        LAG=1,
        num_warps=4,
        num_stages=3,
    )

    hybrid_dq[(triton.cdiv(TQ, 128) * B * HQ,)](
        q,
        k,
        v,
        o,
        lse,
        dlse,
        do,
        u_mix,
        u_z,
        folded_dq,
        folded_scores,
        folded_weights,
        dq,
        delta,
        du_z_h_sink,
        du_mix_h_factor_term2,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_mix.stride(),
        *u_z.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        K=64,
        V=64,
        BT=128,
        BS=64,
        BK=64,
        BV=64,
        BC=64,
        LAG=1,
        num_warps=8,
        num_stages=3,
    )

    hybrid_dkv[(triton.cdiv(TK, 128) * B * HKV,)](
        q,
        k,
        v,
        lse,
        do,
        delta,
        u_mix,
        folded_dk,
        folded_dv,
        dk,
        dv,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_mix.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        K=64,
        V=64,
        BT=32,
        BS=128,
        BK=64,
        BV=64,
        BC=64,
        LAG=1,
        num_warps=8,
        num_stages=3,
    )

    return (
        dq,
        dk,
        dv,
        du_mix_h_factor_term2.sum((0, 2)).to(u_mix.dtype),
        du_z_h_sink.sum((0, 2)).to(u_z.dtype),
    )
