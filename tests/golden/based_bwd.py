"""based: chunked backward, emitted by attnc.

variant     feature_map taylor(2), scale rsqrt(d), mask causal, normalize sum
dims        K=16 V=64, bf16 in, fp32 accumulators
plan        delta: BT=64 BV=64, 4 warps, 1 stages
plan        state: BC=32 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=32 BE=512, 4 warps, 1 stages
plan        dstate: BC=32 BK=64 BV=64, 4 warps, 3 stages
plan        dscan: BC=32 BE=512, 4 warps, 1 stages
plan        walk_dq: BC=32 BK=64 BV=64, 4 warps, 2 stages
plan        walk_dk: BC=32 BK=64 BV=64, 4 warps, 2 stages
plan        walk_dv: BC=32 BK=64 BV=64, 4 warps, 2 stages
sram        87040 of 232448 bytes (h100)
digest      8fb605d42b1c8980
regenerate  attnc emit based --dim 16,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "HQ"])
def based_delta(
    o,  # [B, T, HQ, V]
    do,  # [B, T, HQ, V]
    norm,  # [B, HQ, T]: sums of weights
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
    p_norm = norm + i_bh * T + start_t
    p_delta = delta + i_bh * T + start_t
    b_n = tl.load(
        p_norm + r_t,
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
    b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)
    b_do = (b_do * b_n[:, None]).to(do.dtype.element_ty)
    b_d = -tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
    tl.store(
        p_delta + r_t,
        b_d,
        mask=m_t,
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def based_state(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    index,  # [ORDER, FP]: factors of each feature
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
):
    # one program: BV columns of one segment of one state
    NV = tl.cdiv(V, BV)
    i_v = tl.program_id(0) % NV
    i_n = tl.program_id(1)
    i_bh = (tl.program_id(0) // NV).to(tl.int64)
    i_b = i_bh // HS
    i_hs = i_bh % HS
    i_hkv = i_hs // (HS // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)
    m_k = o_k < K

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)
    p_index = index

    # columns 0 to 63: which factors each takes
    o_f0 = tl.arange(0, 64)
    b_i00 = tl.load(p_index + o_f0)
    b_e00 = (o_k[:, None] == b_i00[None, :]).to(v.dtype.element_ty)
    b_i01 = tl.load(p_index + FP + o_f0)
    b_e01 = (o_k[:, None] == b_i01[None, :]).to(v.dtype.element_ty)

    # columns 64 to 127: which factors each takes
    o_f1 = 64 + tl.arange(0, 64)
    b_i10 = tl.load(p_index + o_f1)
    b_e10 = (o_k[:, None] == b_i10[None, :]).to(v.dtype.element_ty)
    b_i11 = tl.load(p_index + FP + o_f1)
    b_e11 = (o_k[:, None] == b_i11[None, :]).to(v.dtype.element_ty)

    # columns 128 to 152: which factors each takes
    o_f2 = 128 + tl.arange(0, 64)
    b_i20 = tl.load(p_index + o_f2)
    b_e20 = (o_k[:, None] == b_i20[None, :]).to(v.dtype.element_ty)
    b_i21 = tl.load(p_index + FP + o_f2)
    b_e21 = (o_k[:, None] == b_i21[None, :]).to(v.dtype.element_ty)
    b_u21 = tl.where(b_i21 < 0, 1.0, 0.0)
    b_u20 = tl.where(b_i20 < 0, 1.0, 0.0)

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)
    b_z0 = tl.zeros([64], tl.float32)

    # the state of this segment, from zero
    b_h1 = tl.zeros([64, BV], tl.float32)
    b_z1 = tl.zeros([64], tl.float32)

    # the state of this segment, from zero
    b_h2 = tl.zeros([64, BV], tl.float32)
    b_z2 = tl.zeros([64], tl.float32)

    # the chunks of this segment, in order
    for i_c in range(first, last):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
        b_k = tl.load(
            p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e01)
        b_f0 = b_x0 * b_x1
        b_f0 = b_f0.to(v.dtype.element_ty)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e11)
        b_f1 = b_x0 * b_x1
        b_f1 = b_f1.to(v.dtype.element_ty)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e21) + b_u21[None, :]
        b_f2 = b_x0 * b_x1
        b_f2 = b_f2.to(v.dtype.element_ty)
        b_z0 = b_z0 + tl.sum(b_f0.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_f0), b_v, b_h0)
        b_z1 = b_z1 + tl.sum(b_f1.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h1 = tl.dot(tl.trans(b_f1), b_v, b_h1)
        b_z2 = b_z2 + tl.sum(tl.where(m_t[:, None], b_f2.to(tl.float32), 0.0), 0)

        # [64, BC] @ [BC, BV]
        b_h2 = tl.dot(tl.trans(b_f2), b_v, b_h2)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(p_states + FP * V + r_f0, b_z0)

    # rows 64 to 127 of the state
    r_f1 = 64 + tl.arange(0, 64)
    tl.store(p_states + r_f1[:, None] * V + o_v[None, :], b_h1)
    tl.store(p_states + FP * V + r_f1, b_z1)

    # rows 128 to 191 of the state
    r_f2 = 128 + tl.arange(0, 64)
    tl.store(p_states + r_f2[:, None] * V + o_v[None, :], b_h2)
    tl.store(p_states + FP * V + r_f2, b_z2)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def based_scan(
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
def based_dstate(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    norm,  # [B, HQ, T]: sums of weights
    delta,  # [B, HQ, T]: what normalising gives back
    index,  # [ORDER, FP]: factors of each feature
    weight,  # [FP]: weight of each feature
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
    m_k = o_k < K

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_norm = norm + i_bh * T
    p_delta = delta + i_bh * T
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)
    p_index = index
    p_weight = weight

    # columns 0 to 63: which factors each takes
    o_f0 = tl.arange(0, 64)
    b_i00 = tl.load(p_index + o_f0)
    b_e00 = (o_k[:, None] == b_i00[None, :]).to(do.dtype.element_ty)
    b_i01 = tl.load(p_index + FP + o_f0)
    b_e01 = (o_k[:, None] == b_i01[None, :]).to(do.dtype.element_ty)

    # c_m * scale**m * m!/alpha!, zero in padding
    b_w0 = tl.load(p_weight + o_f0)

    # columns 64 to 127: which factors each takes
    o_f1 = 64 + tl.arange(0, 64)
    b_i10 = tl.load(p_index + o_f1)
    b_e10 = (o_k[:, None] == b_i10[None, :]).to(do.dtype.element_ty)
    b_i11 = tl.load(p_index + FP + o_f1)
    b_e11 = (o_k[:, None] == b_i11[None, :]).to(do.dtype.element_ty)

    # c_m * scale**m * m!/alpha!, zero in padding
    b_w1 = tl.load(p_weight + o_f1)

    # columns 128 to 152: which factors each takes
    o_f2 = 128 + tl.arange(0, 64)
    b_i20 = tl.load(p_index + o_f2)
    b_e20 = (o_k[:, None] == b_i20[None, :]).to(do.dtype.element_ty)
    b_i21 = tl.load(p_index + FP + o_f2)
    b_e21 = (o_k[:, None] == b_i21[None, :]).to(do.dtype.element_ty)
    b_u21 = tl.where(b_i21 < 0, 1.0, 0.0)
    b_u20 = tl.where(b_i20 < 0, 1.0, 0.0)

    # c_m * scale**m * m!/alpha!, zero in padding
    b_w2 = tl.load(p_weight + o_f2)

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)
    b_z0 = tl.zeros([64], tl.float32)

    # the state of this segment, from zero
    b_h1 = tl.zeros([64, BV], tl.float32)
    b_z1 = tl.zeros([64], tl.float32)

    # the state of this segment, from zero
    b_h2 = tl.zeros([64, BV], tl.float32)
    b_z2 = tl.zeros([64], tl.float32)

    # the chunks of this segment, the last one first
    for i_c in range(last - 1, first - 1, -1):
        o_t = i_c * BC + r_c
        m_t = o_t < T

        # [BC, BK]
        p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_n = tl.load(
            p_norm + o_t,
            mask=m_t,
            other=0.0,
        )
        b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)
        b_d = tl.load(
            p_delta + o_t,
            mask=m_t,
            other=0.0,
        )
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(do.dtype.element_ty)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e01)
        b_p0 = b_x0 * b_x1 * b_w0[None, :]
        b_p0 = b_p0.to(do.dtype.element_ty)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e11)
        b_p1 = b_x0 * b_x1 * b_w1[None, :]
        b_p1 = b_p1.to(do.dtype.element_ty)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e21) + b_u21[None, :]
        b_p2 = b_x0 * b_x1 * b_w2[None, :]
        b_p2 = b_p2.to(do.dtype.element_ty)
        b_z0 = b_z0 + tl.sum(b_p0.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_p0), b_do, b_h0)
        b_z1 = b_z1 + tl.sum(b_p1.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h1 = tl.dot(tl.trans(b_p1), b_do, b_h1)
        b_z2 = b_z2 + tl.sum(b_p2.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h2 = tl.dot(tl.trans(b_p2), b_do, b_h2)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(p_states + FP * V + r_f0, b_z0)

    # rows 64 to 127 of the state
    r_f1 = 64 + tl.arange(0, 64)
    tl.store(p_states + r_f1[:, None] * V + o_v[None, :], b_h1)
    tl.store(p_states + FP * V + r_f1, b_z1)

    # rows 128 to 191 of the state
    r_f2 = 128 + tl.arange(0, 64)
    tl.store(p_states + r_f2[:, None] * V + o_v[None, :], b_h2)
    tl.store(p_states + FP * V + r_f2, b_z2)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def based_dscan(
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
def based_walk_dq(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    norm,  # [B, HQ, T]: sums of weights
    delta,  # [B, HQ, T]: what normalising gives back
    index,  # [ORDER, FP]: factors of each feature
    weight,  # [FP]: weight of each feature
    states,  # [B, HS, NS, SLOT]: FP * V, then FP sums
    dq,  # [B, T, HQ, K]
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
    m_k = o_k < K
    # the first segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_norm = norm + i_bh * T
    p_delta = delta + i_bh * T
    p_dq = dq + (i_b * T * HQ + i_h) * K
    p_states = states + ((i_b * HS + i_hs) * NS + i_n) * (FP * V + FP)
    p_index = index
    p_weight = weight

    # the state before this segment
    r_f0 = tl.arange(0, 64)
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

    # the state before this segment
    r_f1 = 64 + tl.arange(0, 64)
    b_h1 = tl.load(
        p_states + r_f1[:, None] * V + o_v[None, :],
        mask=(r_f1[:, None] < n_f),
        other=0.0,
    )
    b_z1 = tl.load(
        p_states + FP * V + r_f1,
        mask=r_f1 < n_f,
        other=0.0,
    )

    # the state before this segment
    r_f2 = 128 + tl.arange(0, 64)
    b_h2 = tl.load(
        p_states + r_f2[:, None] * V + o_v[None, :],
        mask=(r_f2[:, None] < n_f),
        other=0.0,
    )
    b_z2 = tl.load(
        p_states + FP * V + r_f2,
        mask=r_f2 < n_f,
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
            mask=m_t[:, None] & m_k[None, :],
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
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_n = tl.load(
            p_norm + o_t,
            mask=m_t,
            other=0.0,
        )
        b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)
        b_d = tl.load(
            p_delta + o_t,
            mask=m_t,
            other=0.0,
        )
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(v.dtype.element_ty)

        # inside the chunk: the scores again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # the weight's derivative, a polynomial of s
        b_y = 0.25 * b_s + 1.0
        b_y = b_y * 0.25

        # gradient of the weights
        b_dw = tl.dot(b_do, tl.trans(b_v))
        b_dw = b_dw + b_d[:, None]

        # gradient of the scores
        b_ds = b_dw * b_y
        b_ds = tl.where(r_c[:, None] >= r_c[None, :], b_ds, 0.0)

        # [BC, BC] @ [BC, BK]
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k)

        # columns 0 to 63: which factors each takes
        o_f0 = tl.arange(0, 64)
        b_i00 = tl.load(p_index + o_f0)
        b_e00 = (o_k[:, None] == b_i00[None, :]).to(v.dtype.element_ty)
        b_i01 = tl.load(p_index + FP + o_f0)
        b_e01 = (o_k[:, None] == b_i01[None, :]).to(v.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w0 = tl.load(p_weight + o_f0)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e01)

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_do, tl.trans(b_h0.to(v.dtype.element_ty)))
        b_df = b_df + b_d[:, None] * b_z0[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1 * b_w0[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e00), b_dq)
        b_dx = b_df * b_x0 * b_w0[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e01), b_dq)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e01)
        b_f0 = b_x0 * b_x1
        b_f0 = b_f0.to(v.dtype.element_ty)
        b_z0 = b_z0 + tl.sum(b_f0.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_f0), b_v, b_h0)

        # columns 64 to 127: which factors each takes
        o_f1 = 64 + tl.arange(0, 64)
        b_i10 = tl.load(p_index + o_f1)
        b_e10 = (o_k[:, None] == b_i10[None, :]).to(v.dtype.element_ty)
        b_i11 = tl.load(p_index + FP + o_f1)
        b_e11 = (o_k[:, None] == b_i11[None, :]).to(v.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w1 = tl.load(p_weight + o_f1)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e11)

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_do, tl.trans(b_h1.to(v.dtype.element_ty)))
        b_df = b_df + b_d[:, None] * b_z1[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1 * b_w1[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e10), b_dq)
        b_dx = b_df * b_x0 * b_w1[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e11), b_dq)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e11)
        b_f1 = b_x0 * b_x1
        b_f1 = b_f1.to(v.dtype.element_ty)
        b_z1 = b_z1 + tl.sum(b_f1.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h1 = tl.dot(tl.trans(b_f1), b_v, b_h1)

        # columns 128 to 152: which factors each takes
        o_f2 = 128 + tl.arange(0, 64)
        b_i20 = tl.load(p_index + o_f2)
        b_e20 = (o_k[:, None] == b_i20[None, :]).to(v.dtype.element_ty)
        b_i21 = tl.load(p_index + FP + o_f2)
        b_e21 = (o_k[:, None] == b_i21[None, :]).to(v.dtype.element_ty)
        b_u21 = tl.where(b_i21 < 0, 1.0, 0.0)
        b_u20 = tl.where(b_i20 < 0, 1.0, 0.0)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w2 = tl.load(p_weight + o_f2)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e21) + b_u21[None, :]

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_do, tl.trans(b_h2.to(v.dtype.element_ty)))
        b_df = b_df + b_d[:, None] * b_z2[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1 * b_w2[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e20), b_dq)
        b_dx = b_df * b_x0 * b_w2[None, :]
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dq = tl.dot(b_dx, tl.trans(b_e21), b_dq)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e21) + b_u21[None, :]
        b_f2 = b_x0 * b_x1
        b_f2 = b_f2.to(v.dtype.element_ty)
        b_z2 = b_z2 + tl.sum(tl.where(m_t[:, None], b_f2.to(tl.float32), 0.0), 0)

        # [64, BC] @ [BC, BV]
        b_h2 = tl.dot(tl.trans(b_f2), b_v, b_h2)

        # [BC, BK]
        p_dqt = p_dq + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dqt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dq.to(dq.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def based_walk_dk(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    norm,  # [B, HQ, T]: sums of weights
    delta,  # [B, HQ, T]: what normalising gives back
    index,  # [ORDER, FP]: factors of each feature
    weight,  # [FP]: weight of each feature
    states,  # [B, HQ, NS, SLOT]: FP * V, then FP sums
    dk,  # [B, T, HQ, K]
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
    m_k = o_k < K
    # the last segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n < NS - 1, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_norm = norm + i_bh * T
    p_delta = delta + i_bh * T
    p_dk = dk + (i_b * T * HQ + i_h) * K
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)
    p_index = index
    p_weight = weight

    # what the state after this segment leads to
    r_f0 = tl.arange(0, 64)
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

    # what the state after this segment leads to
    r_f1 = 64 + tl.arange(0, 64)
    b_h1 = tl.load(
        p_states + r_f1[:, None] * V + o_v[None, :],
        mask=(r_f1[:, None] < n_f),
        other=0.0,
    )
    b_z1 = tl.load(
        p_states + FP * V + r_f1,
        mask=r_f1 < n_f,
        other=0.0,
    )

    # what the state after this segment leads to
    r_f2 = 128 + tl.arange(0, 64)
    b_h2 = tl.load(
        p_states + r_f2[:, None] * V + o_v[None, :],
        mask=(r_f2[:, None] < n_f),
        other=0.0,
    )
    b_z2 = tl.load(
        p_states + FP * V + r_f2,
        mask=r_f2 < n_f,
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
            mask=m_t[:, None] & m_k[None, :],
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
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_n = tl.load(
            p_norm + o_t,
            mask=m_t,
            other=0.0,
        )
        b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)
        b_d = tl.load(
            p_delta + o_t,
            mask=m_t,
            other=0.0,
        )
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(v.dtype.element_ty)

        # inside the chunk: the scores again
        b_s = tl.dot(b_k, tl.trans(b_q))

        # the weight's derivative, a polynomial of s
        b_y = 0.25 * b_s + 1.0
        b_y = b_y * 0.25

        # gradient of the weights
        b_dw = tl.dot(b_v, tl.trans(b_do))
        b_dw = b_dw + b_d[None, :]

        # gradient of the scores
        b_ds = b_dw * b_y
        b_ds = tl.where(r_c[None, :] >= r_c[:, None], b_ds, 0.0)

        # [BC, BC] @ [BC, BK]
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q)

        # columns 0 to 63: which factors each takes
        o_f0 = tl.arange(0, 64)
        b_i00 = tl.load(p_index + o_f0)
        b_e00 = (o_k[:, None] == b_i00[None, :]).to(v.dtype.element_ty)
        b_i01 = tl.load(p_index + FP + o_f0)
        b_e01 = (o_k[:, None] == b_i01[None, :]).to(v.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w0 = tl.load(p_weight + o_f0)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e01)

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_v, tl.trans(b_h0.to(v.dtype.element_ty)))
        b_df = b_df + b_z0[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e00), b_dk)
        b_dx = b_df * b_x0
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e01), b_dk)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e01)
        b_p0 = b_x0 * b_x1 * b_w0[None, :]
        b_p0 = b_p0.to(v.dtype.element_ty)
        b_z0 = b_z0 + tl.sum(b_p0.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_p0), b_do, b_h0)

        # columns 64 to 127: which factors each takes
        o_f1 = 64 + tl.arange(0, 64)
        b_i10 = tl.load(p_index + o_f1)
        b_e10 = (o_k[:, None] == b_i10[None, :]).to(v.dtype.element_ty)
        b_i11 = tl.load(p_index + FP + o_f1)
        b_e11 = (o_k[:, None] == b_i11[None, :]).to(v.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w1 = tl.load(p_weight + o_f1)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e11)

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_v, tl.trans(b_h1.to(v.dtype.element_ty)))
        b_df = b_df + b_z1[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e10), b_dk)
        b_dx = b_df * b_x0
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e11), b_dk)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e11)
        b_p1 = b_x0 * b_x1 * b_w1[None, :]
        b_p1 = b_p1.to(v.dtype.element_ty)
        b_z1 = b_z1 + tl.sum(b_p1.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h1 = tl.dot(tl.trans(b_p1), b_do, b_h1)

        # columns 128 to 152: which factors each takes
        o_f2 = 128 + tl.arange(0, 64)
        b_i20 = tl.load(p_index + o_f2)
        b_e20 = (o_k[:, None] == b_i20[None, :]).to(v.dtype.element_ty)
        b_i21 = tl.load(p_index + FP + o_f2)
        b_e21 = (o_k[:, None] == b_i21[None, :]).to(v.dtype.element_ty)
        b_u21 = tl.where(b_i21 < 0, 1.0, 0.0)
        b_u20 = tl.where(b_i20 < 0, 1.0, 0.0)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w2 = tl.load(p_weight + o_f2)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e21) + b_u21[None, :]

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_v, tl.trans(b_h2.to(v.dtype.element_ty)))
        b_df = b_df + b_z2[None, :]

        # each factor gets the product of the others
        b_dx = b_df * b_x1
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e20), b_dk)
        b_dx = b_df * b_x0
        b_dx = b_dx.to(v.dtype.element_ty)

        # [BC, 64] @ [64, BK]
        b_dk = tl.dot(b_dx, tl.trans(b_e21), b_dk)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e21) + b_u21[None, :]
        b_p2 = b_x0 * b_x1 * b_w2[None, :]
        b_p2 = b_p2.to(v.dtype.element_ty)
        b_z2 = b_z2 + tl.sum(b_p2.to(tl.float32) * b_d[:, None], 0)

        # [64, BC] @ [BC, BV]
        b_h2 = tl.dot(tl.trans(b_p2), b_do, b_h2)

        # [BC, BK]
        p_dkt = p_dk + tl.cast(i_c * BC, tl.int64) * HQ * K
        tl.store(
            p_dkt + r_c[:, None] * HQ * K + o_k[None, :],
            b_dk.to(dk.dtype.element_ty),
            mask=m_t[:, None] & m_k[None, :],
        )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def based_walk_dv(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    do,  # [B, T, HQ, V]
    norm,  # [B, HQ, T]: sums of weights
    index,  # [ORDER, FP]: factors of each feature
    weight,  # [FP]: weight of each feature
    states,  # [B, HQ, NS, SLOT]: FP * V, then FP sums
    dv,  # [B, T, HQ, V]
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
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
    m_k = o_k < K
    # the last segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n < NS - 1, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_norm = norm + i_bh * T
    p_dv = dv + (i_b * T * HQ + i_h) * V
    p_states = states + (i_bh * NS + i_n) * (FP * V + FP)
    p_index = index
    p_weight = weight

    # what the state after this segment leads to
    r_f0 = tl.arange(0, 64)
    b_h0 = tl.load(
        p_states + r_f0[:, None] * V + o_v[None, :],
        mask=(r_f0[:, None] < n_f),
        other=0.0,
    )

    # what the state after this segment leads to
    r_f1 = 64 + tl.arange(0, 64)
    b_h1 = tl.load(
        p_states + r_f1[:, None] * V + o_v[None, :],
        mask=(r_f1[:, None] < n_f),
        other=0.0,
    )

    # what the state after this segment leads to
    r_f2 = 128 + tl.arange(0, 64)
    b_h2 = tl.load(
        p_states + r_f2[:, None] * V + o_v[None, :],
        mask=(r_f2[:, None] < n_f),
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
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BK]
        p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # [BC, BV]
        p_dot = p_do + tl.cast(i_c * BC, tl.int64) * stride_do_t
        b_do = tl.load(
            p_dot + r_c[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
            mask=m_t[:, None],
            other=0.0,
        )
        b_n = tl.load(
            p_norm + o_t,
            mask=m_t,
            other=0.0,
        )
        b_n = 1.0 / tl.where(b_n != 0.0, b_n, 1.0)
        b_do = b_do * b_n[:, None]
        b_do = b_do.to(do.dtype.element_ty)

        # inside the chunk: the scores again
        b_s = tl.dot(b_k, tl.trans(b_q))
        b_p = 0.03125 * b_s + 0.25
        b_p = b_p * b_s + 1.0
        b_p = tl.where(r_c[None, :] >= r_c[:, None], b_p, 0.0)

        # [BC, BC] @ [BC, BV]
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do)

        # columns 0 to 63: which factors each takes
        o_f0 = tl.arange(0, 64)
        b_i00 = tl.load(p_index + o_f0)
        b_e00 = (o_k[:, None] == b_i00[None, :]).to(do.dtype.element_ty)
        b_i01 = tl.load(p_index + FP + o_f0)
        b_e01 = (o_k[:, None] == b_i01[None, :]).to(do.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w0 = tl.load(p_weight + o_f0)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e01)
        b_f0 = b_x0 * b_x1
        b_f0 = b_f0.to(do.dtype.element_ty)

        # [BC, 64] @ [64, BV]
        b_dv = tl.dot(b_f0, b_h0.to(do.dtype.element_ty), b_dv)

        # factor 0 of features 0: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e00)

        # factor 1 of features 0: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e01)
        b_p0 = b_x0 * b_x1 * b_w0[None, :]
        b_p0 = b_p0.to(do.dtype.element_ty)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_p0), b_do, b_h0)

        # columns 64 to 127: which factors each takes
        o_f1 = 64 + tl.arange(0, 64)
        b_i10 = tl.load(p_index + o_f1)
        b_e10 = (o_k[:, None] == b_i10[None, :]).to(do.dtype.element_ty)
        b_i11 = tl.load(p_index + FP + o_f1)
        b_e11 = (o_k[:, None] == b_i11[None, :]).to(do.dtype.element_ty)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w1 = tl.load(p_weight + o_f1)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e11)
        b_f1 = b_x0 * b_x1
        b_f1 = b_f1.to(do.dtype.element_ty)

        # [BC, 64] @ [64, BV]
        b_dv = tl.dot(b_f1, b_h1.to(do.dtype.element_ty), b_dv)

        # factor 0 of features 64: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e10)

        # factor 1 of features 64: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e11)
        b_p1 = b_x0 * b_x1 * b_w1[None, :]
        b_p1 = b_p1.to(do.dtype.element_ty)

        # [64, BC] @ [BC, BV]
        b_h1 = tl.dot(tl.trans(b_p1), b_do, b_h1)

        # columns 128 to 152: which factors each takes
        o_f2 = 128 + tl.arange(0, 64)
        b_i20 = tl.load(p_index + o_f2)
        b_e20 = (o_k[:, None] == b_i20[None, :]).to(do.dtype.element_ty)
        b_i21 = tl.load(p_index + FP + o_f2)
        b_e21 = (o_k[:, None] == b_i21[None, :]).to(do.dtype.element_ty)
        b_u21 = tl.where(b_i21 < 0, 1.0, 0.0)
        b_u20 = tl.where(b_i20 < 0, 1.0, 0.0)

        # c_m * scale**m * m!/alpha!, zero in padding
        b_w2 = tl.load(p_weight + o_f2)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_k, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_k, b_e21) + b_u21[None, :]
        b_f2 = b_x0 * b_x1
        b_f2 = b_f2.to(do.dtype.element_ty)

        # [BC, 64] @ [64, BV]
        b_dv = tl.dot(b_f2, b_h2.to(do.dtype.element_ty), b_dv)

        # factor 0 of features 128: [BC, BK] @ [BK, 64]
        b_x0 = tl.dot(b_q, b_e20) + b_u20[None, :]

        # factor 1 of features 128: [BC, BK] @ [BK, 64]
        b_x1 = tl.dot(b_q, b_e21) + b_u21[None, :]
        b_p2 = b_x0 * b_x1 * b_w2[None, :]
        b_p2 = b_p2.to(do.dtype.element_ty)

        # [64, BC] @ [BC, BV]
        b_h2 = tl.dot(tl.trans(b_p2), b_do, b_h2)

        # [BC, BV]
        p_dvt = p_dv + tl.cast(i_c * BC, tl.int64) * HQ * V
        tl.store(
            p_dvt + r_c[:, None] * HQ * V + o_v[None, :],
            b_dv.to(dv.dtype.element_ty),
            mask=m_t[:, None],
        )


_TABLES: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}


def feature_tables(device):
    """Factors [2, 192] and weights [192] of the 153 monomials of k.

    A monomial of m factors fills m rows, -1 elsewhere; its weight is c_m * scale**m * m!/alpha!.
    """
    if device not in _TABLES:
        index = torch.full((2, 192), -1, dtype=torch.int32)
        weight = torch.zeros(192, dtype=torch.float64)
        factorial = torch.tensor([1, 1, 2], dtype=torch.float64)
        start = 0
        for degree, factor in ((2, 0.03125), (1, 0.25)):
            picks = torch.combinations(torch.arange(16), degree, True)
            count = (picks[:, :, None] == torch.arange(16)).sum(1)
            stop = start + len(picks)
            index[:degree, start:stop] = picks.T
            weight[start:stop] = factor * factorial[degree] / factorial[count].prod(1)
            start = stop
        weight[start] = 1.0
        _TABLES[device] = (index.to(device), weight.to(device, torch.float32))
    return _TABLES[device]


def backward(q, k, v, o, norm, do):
    """Gradients by the chunked form, for K = 16, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv.
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HKV
    NV = triton.cdiv(64, 64)
    dq = torch.empty((B, T, HQ, 16), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, T, HQ, 16), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    index, weight = feature_tables(q.device)

    # as many segments as 264 programs hold, each at least 4 chunks long
    NC = triton.cdiv(T, 32)
    NS = max(1, min(264 // (B * HQ), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    # the state before each segment, and the gradient of the state after it
    states = torch.empty((B, HS, NS, 12480), dtype=torch.float32, device=q.device)
    dstates = torch.empty((B, HQ, NS, 12480), dtype=torch.float32, device=q.device)
    delta = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)

    based_delta[(triton.cdiv(T, 64) * B * HQ,)](
        o,
        do,
        norm,
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
        based_state[(NV * B * HS, NS)](
            k,
            v,
            index,
            states,
            *k.stride(),
            *v.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            K=16,
            V=64,
            BC=32,
            BK=64,
            BV=64,
            FP=192,
            num_warps=4,
            num_stages=3,
        )

        based_scan[(triton.cdiv(12480, 512) * B * HS,)](
            states,
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            V=64,
            BC=32,
            BE=512,
            F=153,
            FP=192,
            num_warps=4,
            num_stages=1,
        )

        based_dstate[(NV * B * HQ, NS)](
            q,
            do,
            norm,
            delta,
            index,
            weight,
            dstates,
            *q.stride(),
            *do.stride(),
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            K=16,
            V=64,
            BC=32,
            BK=64,
            BV=64,
            FP=192,
            num_warps=4,
            num_stages=3,
        )

        based_dscan[(triton.cdiv(12480, 512) * B * HQ,)](
            dstates,
            T,
            HQ,
            HKV,
            HS,
            NS,
            CPS,
            V=64,
            BC=32,
            BE=512,
            F=153,
            FP=192,
            num_warps=4,
            num_stages=1,
        )

    based_walk_dq[(B * HQ, NS)](
        q,
        k,
        v,
        do,
        norm,
        delta,
        index,
        weight,
        states,
        dq,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=16,
        V=64,
        BC=32,
        BK=64,
        BV=64,
        FP=192,
        num_warps=4,
        num_stages=2,
    )

    based_walk_dk[(B * HQ, NS)](
        q,
        k,
        v,
        do,
        norm,
        delta,
        index,
        weight,
        dstates,
        dk,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=16,
        V=64,
        BC=32,
        BK=64,
        BV=64,
        FP=192,
        num_warps=4,
        num_stages=2,
    )

    based_walk_dv[(B * HQ, NS)](
        q,
        k,
        do,
        norm,
        index,
        weight,
        dstates,
        dv,
        *q.stride(),
        *k.stride(),
        *do.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=16,
        V=64,
        BC=32,
        BK=64,
        BV=64,
        FP=192,
        num_warps=4,
        num_stages=2,
    )

    if HQ > HKV:
        # a key/value head's gradients are the sums of those of its group
        dk, dv = (x.unflatten(2, (HKV, -1)).sum(3) for x in (dk, dv))
    return dq, dk, dv
