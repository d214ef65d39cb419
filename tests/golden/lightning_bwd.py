"""lightning: chunked backward, emitted by attnc.

variant     feature_map identity, scale 1, mask causal, log_decay -slope[h], normalize none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        state: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        dstate: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dscan: BC=64 BE=512, 4 warps, 1 stages
plan        carry: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dcarry: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dquery: BC=64 BK=64 BV=64, 4 warps, 1 stages
plan        dkey: BC=64 BK=64 BV=64, 4 warps, 1 stages
plan        dvalue: BC=64 BK=64 BV=64, 4 warps, 1 stages
sram        57344 of 232448 bytes (h100)
digest      a5e630e5f5c27fe4
regenerate  attnc emit lightning --dim 64,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def lightning_state(
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

        # the decayed value in two parts, its rounding and what that left
        b_ul = b_v * b_u[:, None]
        b_vu = b_ul.to(v.dtype.element_ty)
        b_ul = (b_ul - b_vu.to(tl.float32)).to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)
        b_h0 = tl.dot(tl.trans(b_k), b_ul, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def lightning_scan(
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
def lightning_dstate(
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

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # decay from the chunk's start to each row, and over the whole chunk
        b_rl = tl.exp2(b_g)
        b_l = tl.exp2(b_gl)

        # the decayed value in two parts, its rounding and what that left
        b_ul = b_do * b_rl[:, None]
        b_dou = b_ul.to(do.dtype.element_ty)
        b_ul = (b_ul - b_dou.to(tl.float32)).to(do.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_dou, b_h0)
        b_h0 = tl.dot(tl.trans(b_q), b_ul, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def lightning_dscan(
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


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS", "NC"])
def lightning_carry(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    u_slope,  # [h]
    states,  # [B, HS, NS, FP, V]
    carried,  # [B, HS, NC, FP, V]
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
    NC,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: BV columns of one segment of one state head
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
    # the first segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_carried = carried + i_bh * NC * FP * V
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state before this segment
    r_f0 = tl.arange(0, 64)
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

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # the state at this chunk
        r_f0 = tl.arange(0, 64)
        p_kept = p_carried + tl.cast(i_c, tl.int64) * FP * V
        tl.store(p_kept + r_f0[:, None] * V + o_v[None, :], b_h0.to(carried.dtype.element_ty))

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2(b_gl - b_g)
        b_l = tl.exp2(b_gl)

        # the decayed value in two parts, its rounding and what that left
        b_ul = b_v * b_u[:, None]
        b_vu = b_ul.to(v.dtype.element_ty)
        b_ul = (b_ul - b_vu.to(tl.float32)).to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)
        b_h0 = tl.dot(tl.trans(b_k), b_ul, b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS", "NC"])
def lightning_dcarry(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    states,  # [B, HQ, NS, FP, V]
    carried,  # [B, HQ, NC, FP, V]
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
    NC,
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
    # the last segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n < NS - 1, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_carried = carried + i_bh * NC * FP * V
    b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

    # log2 decay a token
    b_c = -b_u_slope
    b_c = b_c * 1.4426950408889634

    # the state before this segment
    r_f0 = tl.arange(0, 64)
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

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c
        b_gl = n_c * b_c

        # the state at this chunk
        r_f0 = tl.arange(0, 64)
        p_kept = p_carried + tl.cast(i_c, tl.int64) * FP * V
        tl.store(p_kept + r_f0[:, None] * V + o_v[None, :], b_h0.to(carried.dtype.element_ty))

        # decay from the chunk's start to each row, and over the whole chunk
        b_rl = tl.exp2(b_g)
        b_l = tl.exp2(b_gl)

        # the decayed value in two parts, its rounding and what that left
        b_ul = b_do * b_rl[:, None]
        b_dou = b_ul.to(do.dtype.element_ty)
        b_ul = (b_ul - b_dou.to(tl.float32)).to(do.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_q), b_dou, b_h0)
        b_h0 = tl.dot(tl.trans(b_q), b_ul, b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NC"])
def lightning_dquery(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    carried,  # [B, HS, NC, FP, V]: states before chunks
    dq,  # [B, T, HQ, K]
    drows,  # [B, HQ, T]: exponents
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
    NC,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: one chunk of one key/value head
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HKV
    i_hkv = i_bh % HKV

    r_c = tl.arange(0, BC)
    o_t = i_c * BC + r_c
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_t = o_t < T

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h

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

    # the query heads that read this key/value head
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        i_hs = i_h // (HQ // HS)
        p_q = q + i_b * stride_q_b + i_h * stride_q_h
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

        # log2 decay a token
        b_c = -b_u_slope
        b_c = b_c * 1.4426950408889634

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

        # log2 decay from the chunk's start through each token
        n_c = tl.minimum(BC, T - i_c * BC)
        b_g = tl.minimum(r_c + 1, n_c) * b_c

        # inside the chunk: the scores again
        b_s = tl.dot(b_q, tl.trans(b_k))
        b_p = b_s

        # decay from key to query, 0 where the query is before the key
        b_e = tl.where(r_c[:, None] >= r_c[None, :], tl.exp2(b_g[:, None] - b_g[None, :]), 0.0)
        b_p = b_p * b_e

        # gradient of the weights
        b_dw = tl.dot(b_do, tl.trans(b_v))

        # gradient of the scores
        b_ds = b_dw * b_e

        # gradient of the exponents, by rows; a token with itself has no decay
        b_x = tl.where(r_c[:, None] == r_c[None, :], 0.0, b_dw * b_p)
        b_r = tl.sum(b_x, 1)

        # [BC, BC] @ [BC, BK]
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k)

        # decay from the chunk's start to each row
        b_rl = tl.exp2(b_g)

        # the state before the chunk
        r_f0 = tl.arange(0, 64)
        p_carried = carried + ((i_b * HS + i_hs) * NC + i_c) * FP * V
        b_h0 = tl.load(p_carried + r_f0[:, None] * V + o_v[None, :])

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_do, tl.trans(b_h0.to(v.dtype.element_ty)))
        b_df = b_df * b_rl[:, None]
        b_r = b_r + tl.sum(b_q * b_df, 1)
        b_dq = b_dq + b_df
        tl.store(
            drows + (i_b * HQ + i_h) * T + o_t,
            b_r,
            mask=m_t,
        )

        # [BC, BK]
        tl.store(
            dq + ((i_b * T + o_t) * HQ + i_h)[:, None] * K + o_k[None, :],
            b_dq.to(dq.dtype.element_ty),
            mask=m_t[:, None],
        )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NC"])
def lightning_dkey(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    carried,  # [B, HS, NC, FP, V]: states before chunks
    dcarried,  # [B, HQ, NC, FP, V]: gradients of states after chunks
    drows,  # [B, HQ, T]: exponents
    dk,  # [B, T, HKV, K]
    du_slope_h,  # [B, HQ, NT]: sums of d slope[h]
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
    NC,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: one chunk of one key/value head
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HKV
    i_hkv = i_bh % HKV

    r_c = tl.arange(0, BC)
    o_t = i_c * BC + r_c
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_t = o_t < T

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h

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

    # dk of the chunk
    b_dk = tl.zeros([BC, BK], tl.float32)

    # the query heads that read this key/value head
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        i_hs = i_h // (HQ // HS)
        p_q = q + i_b * stride_q_b + i_h * stride_q_h
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

        # log2 decay a token
        b_c = -b_u_slope
        b_c = b_c * 1.4426950408889634

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
        b_r = tl.load(
            drows + (i_b * HQ + i_h) * T + o_t,
            mask=m_t,
            other=0.0,
        )

        # gradient of the exponents: what each row gained less what each key lost
        b_x = tl.where(r_c[:, None] == r_c[None, :], 0.0, b_dw * b_p)
        b_r = b_r - tl.sum(b_x, 1)

        # [BC, BC] @ [BC, BK]
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk)

        # decay from each key to the chunk's end
        b_u = tl.exp2(b_gl - b_g)
        b_cj = tl.zeros([BC], tl.float32)
        b_dd = tl.zeros([], tl.float32)

        # what the state after the chunk leads to
        r_f0 = tl.arange(0, 64)
        p_dcarried = dcarried + ((i_b * HQ + i_h) * NC + i_c) * FP * V
        b_j0 = tl.load(p_dcarried + r_f0[:, None] * V + o_v[None, :])

        # [BC, BV] @ [BV, 64]
        b_df = tl.dot(b_v, tl.trans(b_j0.to(v.dtype.element_ty)))
        b_df = b_df * b_u[:, None]
        b_cj = b_cj + tl.sum(b_k * b_df, 1)
        b_dk = b_dk + b_df

        # the state before the chunk
        p_carried = carried + ((i_b * HS + i_hs) * NC + i_c) * FP * V
        b_h0 = tl.load(p_carried + r_f0[:, None] * V + o_v[None, :])
        b_dd = b_dd + tl.sum(b_h0.to(tl.float32) * b_j0.to(tl.float32))

        # pairs from before the chunk to after it
        b_dd = b_dd * tl.exp2(b_gl)

        # gradient of each token's log decay: of all pairs that it lies between
        b_dg = tl.sum(b_r, 0) - tl.cumsum(b_r, 0) + b_r
        b_dg = b_dg + tl.cumsum(b_cj, 0) - b_cj + b_dd

        # gradient of slope[h]
        b_a_slope_h = tl.zeros([BC], tl.float32)

        # through the declared log decay; padding has none
        b_dg = tl.where(m_t, b_dg, 0.0)
        b_l_slope_h = -1.0
        b_a_slope_h = b_a_slope_h + b_dg * b_l_slope_h
        tl.store(du_slope_h + (i_b * HQ + i_h) * NC + i_c, tl.sum(b_a_slope_h, 0))

    # [BC, BK]
    tl.store(
        dk + ((i_b * T + o_t) * HKV + i_hkv)[:, None] * K + o_k[None, :],
        b_dk.to(dk.dtype.element_ty),
        mask=m_t[:, None],
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NC"])
def lightning_dvalue(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    do,  # [B, T, HQ, V]
    u_slope,  # [h]
    dcarried,  # [B, HQ, NC, FP, V]: gradients of states after chunks
    dv,  # [B, T, HKV, V]
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
    stride_u_slope_h,
    T,
    HQ,
    HKV,
    HS,
    NC,
    K: tl.constexpr,
    V: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    FP: tl.constexpr,
):
    # one program: one chunk of one key/value head
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HKV
    i_hkv = i_bh % HKV

    r_c = tl.arange(0, BC)
    o_t = i_c * BC + r_c
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_t = o_t < T

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h

    # [BC, BK]
    p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
    b_k = tl.load(
        p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # dv of the chunk
    b_dv = tl.zeros([BC, BV], tl.float32)

    # the query heads that read this key/value head
    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        p_q = q + i_b * stride_q_b + i_h * stride_q_h
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        b_u_slope = tl.load(u_slope + i_h * stride_u_slope_h).to(tl.float32)

        # log2 decay a token
        b_c = -b_u_slope
        b_c = b_c * 1.4426950408889634

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

        # [BC, BC] @ [BC, BV]
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

        # decay from each key to the chunk's end
        b_u = tl.exp2(b_gl - b_g)
        b_ku = b_k * b_u[:, None]
        b_ku = b_ku.to(do.dtype.element_ty)

        # what the state after the chunk leads to
        r_f0 = tl.arange(0, 64)
        p_dcarried = dcarried + ((i_b * HQ + i_h) * NC + i_c) * FP * V
        b_j0 = tl.load(p_dcarried + r_f0[:, None] * V + o_v[None, :])

        # [BC, 64] @ [64, BV]
        b_dv = tl.dot(b_ku, b_j0.to(do.dtype.element_ty), b_dv)

    # [BC, BV]
    tl.store(
        dv + ((i_b * T + o_t) * HKV + i_hkv)[:, None] * V + o_v[None, :],
        b_dv.to(dv.dtype.element_ty),
        mask=m_t[:, None],
    )


def backward(q, k, v, u_slope, do):
    """Gradients by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv, du_slope.
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HQ
    NV = triton.cdiv(64, 64)
    dq = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, T, HKV, 64), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, T, HKV, 64), dtype=q.dtype, device=q.device)

    # enough segments to fill 264 programs, each at least 4 chunks long
    NC = triton.cdiv(T, 64)
    NS = max(1, min(triton.cdiv(264, B * HQ * NV), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    # states of segments, then states before every chunk and gradients of states after it
    states = torch.empty((B, HS, NS, 4096), dtype=torch.float32, device=q.device)
    dstates = torch.empty((B, HQ, NS, 4096), dtype=torch.float32, device=q.device)
    carried = torch.empty((B, HS, NC, 4096), dtype=torch.float32, device=q.device)
    dcarried = torch.empty((B, HQ, NC, 4096), dtype=torch.float32, device=q.device)
    drows = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)

    # partial sums of the declared tensors' gradients: each element has one writer
    NT = NC
    du_slope_h = torch.empty((B, HQ, NT), dtype=torch.float32, device=q.device)

    if NS > 1:
        lightning_state[(NV * B * HS, NS)](
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

        lightning_scan[(triton.cdiv(4096, 512) * B * HS,)](
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

        lightning_dstate[(NV * B * HQ, NS)](
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

        lightning_dscan[(triton.cdiv(4096, 512) * B * HQ,)](
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

    lightning_carry[(NV * B * HS, NS)](
        k,
        v,
        u_slope,
        states,
        carried,
        *k.stride(),
        *v.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        NC,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=3,
    )

    lightning_dcarry[(NV * B * HQ, NS)](
        q,
        do,
        u_slope,
        dstates,
        dcarried,
        *q.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        NC,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=3,
    )

    lightning_dquery[(NC * B * HKV,)](
        q,
        k,
        v,
        do,
        u_slope,
        carried,
        dq,
        drows,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NC,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=1,
    )

    lightning_dkey[(NC * B * HKV,)](
        q,
        k,
        v,
        do,
        u_slope,
        carried,
        dcarried,
        drows,
        dk,
        du_slope_h,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NC,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=1,
    )

    lightning_dvalue[(NC * B * HKV,)](
        q,
        k,
        do,
        u_slope,
        dcarried,
        dv,
        *q.stride(),
        *k.stride(),
        *do.stride(),
        *u_slope.stride(),
        T,
        HQ,
        HKV,
        HS,
        NC,
        K=64,
        V=64,
        BC=64,
        BK=64,
        BV=64,
        FP=64,
        num_warps=4,
        num_stages=1,
    )

    return (
        dq,
        dk,
        dv,
        du_slope_h.sum((0, 2)).to(u_slope.dtype),
    )
