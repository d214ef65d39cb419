"""gla: chunked backward, emitted by attnc.

variant     feature_map identity, scale rsqrt(d), mask causal, log_decay -softplus(g[b, t, h,
            k]) / 16, normalize none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        chunk_gates: BC=64 BK=64, 4 warps, 1 stages
plan        pairs: BC=64 BK=64 LEVELS=6, 4 warps, 1 stages
plan        state: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        dstate: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dscan: BC=64 BE=512, 4 warps, 1 stages
plan        carry: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dcarry: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        dpairs: BC=64 BK=64 BV=64 LEVELS=6, 8 warps, 1 stages
plan        dvalue: BC=64 BK=64 BV=64, 4 warps, 1 stages
sram        123904 of 232448 bytes (h100)
digest      ae2a64a069b00f7d
regenerate  attnc emit gla --dim 64,64 --dtype bf16 --device h100 --form chunked --shape 4,4096
            --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    # exp of what is at most 0: no overflow on either side
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def log1p(x):
    # log(1 + x) with the digits that 1 + x rounds away given back
    whole = 1.0 + x
    return tl.where(whole == 1.0, x, tl.log(whole) * (x / (whole - 1.0)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS"])
def gla_chunk_gates(
    u_g,  # [b, t, h, k]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    stride_u_g_b,
    stride_u_g_t,
    stride_u_g_h,
    stride_u_g_k,
    T,
    HQ,
    HKV,
    HS,
    K: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    # one program: one chunk of one state head
    NC = tl.cdiv(T, BC)
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HS
    i_h = i_bh % HS * (HQ // HS)

    o_t = i_c * BC + tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    m_t = o_t < T
    m_k = o_k < K

    p_gates = gates + i_bh * T * K
    p_u_g = u_g + i_b * stride_u_g_b + o_t.to(tl.int64)[:, None] * stride_u_g_t
    b_u_g = tl.load(
        p_u_g + i_h * stride_u_g_h + o_k[None, :] * stride_u_g_k,
        mask=m_t[:, None] & m_k[None, :],
        other=0.0,
    ).to(tl.float32)

    # log2 decay of each token, channel by channel
    b_a = -0.0625 * softplus(b_u_g)
    b_a = tl.where(m_t[:, None], b_a * 1.4426950408889634, 0.0)
    b_g = tl.cumsum(b_a.to(tl.float64), 0)
    tl.store(
        p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
        b_g,
        mask=m_t[:, None] & m_k[None, :],
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS"])
def gla_pairs(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    pairs,  # [B, HQ, T, BC]: weights inside the chunk
    stride_q_b,
    stride_q_t,
    stride_q_h,
    stride_q_k,
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    T,
    HQ,
    HKV,
    HS,
    K: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    # one program: one chunk of one query head
    NC = tl.cdiv(T, BC)
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hkv = i_h // (HQ // HKV)

    r_c = tl.arange(0, BC)
    o_t = i_c * BC + r_c
    o_k = tl.arange(0, BK)
    m_t = o_t < T
    m_k = o_k < K

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * T * K

    # [BC, BK]
    p_qt = p_q + tl.cast(i_c * BC, tl.int64) * stride_q_t
    b_q = tl.load(
        p_qt + r_c[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # [BC, BK]
    p_kt = p_k + tl.cast(i_c * BC, tl.int64) * stride_k_t
    b_k = tl.load(
        p_kt + r_c[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # log2 decay from the chunk's start through each token
    b_g = tl.load(
        p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
        mask=m_t[:, None] & m_k[None, :],
        other=0.0,
    )

    # a token with itself: no decay lies between
    b_w = tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1)[:, None]
    b_w = tl.where(r_c[:, None] == r_c[None, :], b_w, 0.0)

    # blocks of 2, 4, .. BC tokens, each cut in two halves
    for i_l in range(LEVELS):
        # blocks of this level, and which tokens stand in the later half of theirs
        r_b = r_c >> (i_l + 1)
        m_l = (r_c >> i_l) % 2 == 1

        # the sum at the boundary: through the last token of the earlier half
        o_b = i_c * BC + ((2 * r_b + 1) << i_l) - 1
        b_gb = tl.load(
            p_gates + o_b.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=(o_b < T)[:, None] & m_k[None, :],
            other=0.0,
        )

        # decay between token and boundary: at most 1 on either side
        b_e = tl.exp2(-tl.abs(b_g - b_gb).to(tl.float32))
        b_qe = tl.where(m_l[:, None], b_q * b_e, 0.0)
        b_qe = b_qe.to(q.dtype.element_ty)
        b_ke = tl.where(m_l[:, None], 0.0, b_k * b_e)
        b_ke = b_ke.to(q.dtype.element_ty)

        # [BC, BK] @ [BK, BC]
        b_s = tl.dot(b_qe, tl.trans(b_ke))

        # pairs of one block, cut apart at this level
        b_w = b_w + tl.where(r_b[:, None] == r_b[None, :], b_s, 0.0)
    tl.store(
        pairs + ((i_b * HQ + i_h) * T + o_t)[:, None] * BC + r_c[None, :],
        b_w.to(pairs.dtype.element_ty),
        mask=m_t[:, None],
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gla_state(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    states,  # [B, HS, NS, FP, V]
    decays,  # [B, HS, NS, FP]: log2 decay of a segment
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
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_gates = gates + i_bh * T * K

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)

    # log2 decay of the whole segment
    b_gs = tl.zeros([BK], tl.float32)

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
        b_g = tl.load(
            p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # and over the whole chunk
        o_l = tl.minimum(i_c * BC + BC, T) - 1
        b_gl = tl.load(
            p_gates + tl.cast(o_l, tl.int64) * K + o_k,
            mask=m_k,
            other=0.0,
        )

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2((b_gl[None, :] - b_g).to(tl.float32))
        b_l = tl.exp2(b_gl.to(tl.float32))

        # the decayed rows in two parts, their rounding and what that left
        b_ul = b_k * b_u
        b_ku = b_ul.to(v.dtype.element_ty)
        b_ul = (b_ul - b_ku.to(tl.float32)).to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l[:, None]

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_ku), b_v, b_h0)
        b_h0 = tl.dot(tl.trans(b_ul), b_v, b_h0)
        b_gs = b_gs + b_gl.to(tl.float32)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(decays + (i_bh * NS + i_n) * FP + r_f0, b_gs)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gla_scan(
    states,  # [B, HS, NS, FP, V]
    decays,  # [B, HS, NS, FP]
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
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT

    # the state before the first token
    b_h = tl.zeros([BE], tl.float32)

    # rows of the state, then the sums
    r_f = tl.where(o_e < FP * V, o_e // V, o_e - FP * V)

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
        b_gs = tl.load(
            decays + (i_bh * NS + i_n) * FP + r_f,
            mask=m_e,
            other=0.0,
        )
        b_h = b_h * tl.exp2(b_gs) + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gla_dstate(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    states,  # [B, HQ, NS, FP, V]
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
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * T * K

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
        b_g = tl.load(
            p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # and over the whole chunk
        o_l = tl.minimum(i_c * BC + BC, T) - 1
        b_gl = tl.load(
            p_gates + tl.cast(o_l, tl.int64) * K + o_k,
            mask=m_k,
            other=0.0,
        )

        # decay from the chunk's start to each row, and over the whole chunk
        b_u = tl.exp2(b_g.to(tl.float32))
        b_l = tl.exp2(b_gl.to(tl.float32))

        # the decayed rows in two parts, their rounding and what that left
        b_ul = b_q * b_u
        b_qu = b_ul.to(do.dtype.element_ty)
        b_ul = (b_ul - b_qu.to(tl.float32)).to(do.dtype.element_ty)
        b_h0 = b_h0 * b_l[:, None]

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_qu), b_do, b_h0)
        b_h0 = tl.dot(tl.trans(b_ul), b_do, b_h0)

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gla_dscan(
    states,  # [B, HQ, NS, FP, V]
    decays,  # [B, HS, NS, FP]
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
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    o_e = tl.program_id(0) % NE * BE + tl.arange(0, BE)
    m_e = o_e < SLOT
    p_states = states + i_bh * NS * SLOT

    # nothing comes after
    b_h = tl.zeros([BE], tl.float32)

    # rows of the state, then the sums
    r_f = tl.where(o_e < FP * V, o_e // V, o_e - FP * V)

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
        b_gs = tl.load(
            decays + ((i_b * HS + i_h // (HQ // HS)) * NS + i_n) * FP + r_f,
            mask=m_e,
            other=0.0,
        )
        b_h = b_h * tl.exp2(b_gs) + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS", "NC"])
def gla_carry(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
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
    i_hkv = i_hs // (HS // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)
    m_k = o_k < K
    # the first segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_carried = carried + i_bh * NC * FP * V
    p_gates = gates + i_bh * T * K

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
        b_g = tl.load(
            p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # and over the whole chunk
        o_l = tl.minimum(i_c * BC + BC, T) - 1
        b_gl = tl.load(
            p_gates + tl.cast(o_l, tl.int64) * K + o_k,
            mask=m_k,
            other=0.0,
        )

        # the state at this chunk
        r_f0 = tl.arange(0, 64)
        p_kept = p_carried + tl.cast(i_c, tl.int64) * FP * V
        tl.store(p_kept + r_f0[:, None] * V + o_v[None, :], b_h0.to(carried.dtype.element_ty))

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2((b_gl[None, :] - b_g).to(tl.float32))
        b_l = tl.exp2(b_gl.to(tl.float32))

        # the decayed rows in two parts, their rounding and what that left
        b_ul = b_k * b_u
        b_ku = b_ul.to(v.dtype.element_ty)
        b_ul = (b_ul - b_ku.to(tl.float32)).to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l[:, None]

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_ku), b_v, b_h0)
        b_h0 = tl.dot(tl.trans(b_ul), b_v, b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS", "NC"])
def gla_dcarry(
    q,  # [B, T, HQ, K]
    do,  # [B, T, HQ, V]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
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
    m_k = o_k < K
    # the last segment starts from zero: it loads no row of a state
    n_f = tl.where(i_n < NS - 1, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_states = states + (i_bh * NS + i_n) * (FP * V)
    p_carried = carried + i_bh * NC * FP * V
    p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * T * K

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
        b_do = b_do * 0.125
        b_do = b_do.to(do.dtype.element_ty)

        # log2 decay from the chunk's start through each token
        b_g = tl.load(
            p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # and over the whole chunk
        o_l = tl.minimum(i_c * BC + BC, T) - 1
        b_gl = tl.load(
            p_gates + tl.cast(o_l, tl.int64) * K + o_k,
            mask=m_k,
            other=0.0,
        )

        # the state at this chunk
        r_f0 = tl.arange(0, 64)
        p_kept = p_carried + tl.cast(i_c, tl.int64) * FP * V
        tl.store(p_kept + r_f0[:, None] * V + o_v[None, :], b_h0.to(carried.dtype.element_ty))

        # decay from the chunk's start to each row, and over the whole chunk
        b_u = tl.exp2(b_g.to(tl.float32))
        b_l = tl.exp2(b_gl.to(tl.float32))

        # the decayed rows in two parts, their rounding and what that left
        b_ul = b_q * b_u
        b_qu = b_ul.to(do.dtype.element_ty)
        b_ul = (b_ul - b_qu.to(tl.float32)).to(do.dtype.element_ty)
        b_h0 = b_h0 * b_l[:, None]

        # [BK, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_qu), b_do, b_h0)
        b_h0 = tl.dot(tl.trans(b_ul), b_do, b_h0)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NC"])
def gla_dpairs(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    do,  # [B, T, HQ, V]
    u_g,  # [b, t, h, k]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    carried,  # [B, HS, NC, FP, V]: states before chunks
    dcarried,  # [B, HQ, NC, FP, V]: gradients of states after chunks
    dq,  # [B, T, HQ, K]
    dkeys,  # [B, T, HQ, K]: shares of dk
    du_g_b_t_h_k,  # [B, HQ, TK, K]: sums of d g[b, t, h, k]
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
    stride_u_g_b,
    stride_u_g_t,
    stride_u_g_h,
    stride_u_g_k,
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
    LEVELS: tl.constexpr,
):
    # one program: one chunk of one query head
    i_c = tl.program_id(0) % NC
    i_bh = (tl.program_id(0) // NC).to(tl.int64)
    i_b = i_bh // HQ
    i_h = i_bh % HQ
    i_hkv = i_h // (HQ // HKV)
    i_hs = i_h // (HQ // HS)

    r_c = tl.arange(0, BC)
    o_t = i_c * BC + r_c
    o_k = tl.arange(0, BK)
    o_v = tl.arange(0, BV)
    m_t = o_t < T
    m_k = o_k < K

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_do = do + i_b * stride_do_b + i_h * stride_do_h
    p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * T * K

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
    b_g = tl.load(
        p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
        mask=m_t[:, None] & m_k[None, :],
        other=0.0,
    )

    # and over the whole chunk
    o_l = tl.minimum(i_c * BC + BC, T) - 1
    b_gl = tl.load(
        p_gates + tl.cast(o_l, tl.int64) * K + o_k,
        mask=m_k,
        other=0.0,
    )

    # gradient of the weights
    b_dw = tl.dot(b_do, tl.trans(b_v))

    # a token with itself: no decay lies between
    b_c = tl.sum(tl.where(r_c[:, None] == r_c[None, :], b_dw, 0.0), 1)
    b_ds = b_dw
    b_ds = b_ds.to(v.dtype.element_ty)
    b_dq = b_k * b_c[:, None]
    b_dk = b_q * b_c[:, None]

    # gradient of the exponents: what each row gained less what each key lost
    b_r = tl.zeros([BC, BK], tl.float32)

    # blocks of 2, 4, .. BC tokens, each cut in two halves
    for i_l in range(LEVELS):
        # blocks of this level, and which tokens stand in the later half of theirs
        r_b = r_c >> (i_l + 1)
        m_l = (r_c >> i_l) % 2 == 1

        # the sum at the boundary: through the last token of the earlier half
        o_b = i_c * BC + ((2 * r_b + 1) << i_l) - 1
        b_gb = tl.load(
            p_gates + o_b.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=(o_b < T)[:, None] & m_k[None, :],
            other=0.0,
        )

        # decay between token and boundary: at most 1 on either side
        b_e = tl.exp2(-tl.abs(b_g - b_gb).to(tl.float32))
        b_qe = tl.where(m_l[:, None], b_q * b_e, 0.0)
        b_qe = b_qe.to(v.dtype.element_ty)
        b_ke = tl.where(m_l[:, None], 0.0, b_k * b_e)
        b_ke = b_ke.to(v.dtype.element_ty)

        # pairs of one block
        b_dl = tl.where(r_b[:, None] == r_b[None, :], b_ds, 0.0)
        b_dl = b_dl.to(v.dtype.element_ty)

        # [BC, BC] @ [BC, BK]
        b_x = tl.dot(b_dl, b_ke)

        # [BC, BC] @ [BC, BK]
        b_y = tl.dot(tl.trans(b_dl), b_qe)
        b_dq = b_dq + tl.where(m_l[:, None], b_x * b_e, 0.0)
        b_dk = b_dk + tl.where(m_l[:, None], 0.0, b_y * b_e)
        b_r = b_r + b_qe * b_x - b_ke * b_y
    r_f0 = tl.arange(0, BK)

    # the state before the chunk
    p_carried = carried + ((i_b * HS + i_hs) * NC + i_c) * FP * V
    b_h = tl.load(p_carried + r_f0[:, None] * V + o_v[None, :])

    # what the state after the chunk leads to
    p_dcarried = dcarried + ((i_b * HQ + i_h) * NC + i_c) * FP * V
    b_j = tl.load(p_dcarried + r_f0[:, None] * V + o_v[None, :])

    # [BC, BV] @ [BV, BK]
    b_x = tl.dot(b_do, tl.trans(b_h.to(v.dtype.element_ty)))

    # decay from the chunk's start to each row
    b_x = b_x * tl.exp2(b_g.to(tl.float32))
    b_dq = b_dq + b_x

    # [BC, BV] @ [BV, BK]
    b_y = tl.dot(b_v, tl.trans(b_j.to(v.dtype.element_ty)))

    # decay from each key to the chunk's end
    b_y = b_y * tl.exp2((b_gl[None, :] - b_g).to(tl.float32))
    b_dk = b_dk + b_y
    b_r = b_r + b_q * b_x
    b_y = b_k * b_y

    # pairs from before the chunk to after it
    b_a = tl.sum(b_h.to(tl.float32) * b_j.to(tl.float32), 1)
    b_a = b_a * tl.exp2(b_gl.to(tl.float32))

    # gradient of each token's log decays: of all pairs that it lies between
    b_dg = tl.sum(b_r, 0)[None, :] - tl.cumsum(b_r, 0) + b_r
    b_dg = b_dg + tl.cumsum(b_y, 0) - b_y + b_a[None, :]
    p_u_g = u_g + i_b * stride_u_g_b + o_t.to(tl.int64)[:, None] * stride_u_g_t
    b_u_g = tl.load(
        p_u_g + i_h * stride_u_g_h + o_k[None, :] * stride_u_g_k,
        mask=m_t[:, None] & m_k[None, :],
        other=0.0,
    ).to(tl.float32)

    # through the declared log decay
    b_l_g_b_t_h_k = -0.0625 * sigmoid(b_u_g)
    tl.store(
        du_g_b_t_h_k + ((i_b * HQ + i_h) * T + o_t)[:, None] * K + o_k[None, :],
        b_dg * b_l_g_b_t_h_k,
        mask=m_t[:, None] & m_k[None, :],
    )

    # [BC, BK]
    tl.store(
        dq + ((i_b * T + o_t) * HQ + i_h)[:, None] * K + o_k[None, :],
        b_dq.to(dq.dtype.element_ty),
        mask=m_t[:, None] & m_k[None, :],
    )

    # [BC, BK]
    tl.store(
        dkeys + ((i_b * T + o_t) * HQ + i_h)[:, None] * K + o_k[None, :],
        b_dk,
        mask=m_t[:, None] & m_k[None, :],
    )


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NC"])
def gla_dvalue(
    k,  # [B, T, HKV, K]
    do,  # [B, T, HQ, V]
    gates,  # [B, HS, T, K]: log2 decay from the chunk's start
    pairs,  # [B, HQ, T, BC]: weights inside the chunk
    dcarried,  # [B, HQ, NC, FP, V]: gradients of states after chunks
    dv,  # [B, T, HKV, V]
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
    m_k = o_k < K

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
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        p_gates = gates + (i_b * HS + i_h // (HQ // HS)) * T * K

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
        b_g = tl.load(
            p_gates + o_t.to(tl.int64)[:, None] * K + o_k[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )

        # and over the whole chunk
        o_l = tl.minimum(i_c * BC + BC, T) - 1
        b_gl = tl.load(
            p_gates + tl.cast(o_l, tl.int64) * K + o_k,
            mask=m_k,
            other=0.0,
        )

        # weights inside the chunk, keys by queries
        p_pairs = pairs + ((i_b * HQ + i_h) * T + o_t) * BC
        b_p = tl.load(
            p_pairs[None, :] + r_c[:, None],
            mask=m_t[None, :],
            other=0.0,
        )

        # [BC, BC] @ [BC, BV]
        b_dv = tl.dot(b_p, b_do, b_dv)

        # decay from each key to the chunk's end
        b_u = tl.exp2((b_gl[None, :] - b_g).to(tl.float32))
        b_ku = b_k * b_u
        b_ku = b_ku.to(do.dtype.element_ty)

        # what the state after the chunk leads to
        r_f0 = tl.arange(0, BK)
        p_dcarried = dcarried + ((i_b * HQ + i_h) * NC + i_c) * FP * V
        b_j = tl.load(p_dcarried + r_f0[:, None] * V + o_v[None, :])

        # [BC, BK] @ [BK, BV]
        b_dv = tl.dot(b_ku, b_j.to(do.dtype.element_ty), b_dv)

    # [BC, BV]
    tl.store(
        dv + ((i_b * T + o_t) * HKV + i_hkv)[:, None] * V + o_v[None, :],
        b_dv.to(dv.dtype.element_ty),
        mask=m_t[:, None],
    )


def backward(q, k, v, u_g, do):
    """Gradients by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv, du_g.
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HQ
    NV = triton.cdiv(64, 64)
    dq = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    dkeys = torch.empty((B, T, HQ, 64), dtype=torch.float32, device=q.device)
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
    decays = torch.empty((B, HS, NS, 64), dtype=torch.float32, device=q.device)
    gates = torch.empty((B, HS, T, 64), dtype=torch.float64, device=q.device)
    pairs = torch.empty((B, HQ, T, 64), dtype=q.dtype, device=q.device)

    # partial sums of the declared tensors' gradients: each element has one writer
    du_g_b_t_h_k = torch.empty((B, HQ, T, 64), dtype=torch.float32, device=q.device)

    gla_chunk_gates[(NC * B * HS,)](
        u_g,
        gates,
        *u_g.stride(),
        T,
        HQ,
        HKV,
        HS,
        K=64,
        BC=64,
        BK=64,
        num_warps=4,
        num_stages=1,
    )

    gla_pairs[(NC * B * HQ,)](
        q,
        k,
        gates,
        pairs,
        *q.stride(),
        *k.stride(),
        T,
        HQ,
        HKV,
        HS,
        K=64,
        BC=64,
        BK=64,
        LEVELS=6,
        num_warps=4,
        num_stages=1,
    )

    if NS > 1:
        gla_state[(NV * B * HS, NS)](
            k,
            v,
            gates,
            states,
            decays,
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
            num_warps=4,
            num_stages=3,
        )

        gla_scan[(triton.cdiv(4096, 512) * B * HS,)](
            states,
            decays,
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

        gla_dstate[(NV * B * HQ, NS)](
            q,
            do,
            gates,
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
            num_warps=4,
            num_stages=3,
        )

        gla_dscan[(triton.cdiv(4096, 512) * B * HQ,)](
            dstates,
            decays,
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

    gla_carry[(NV * B * HS, NS)](
        k,
        v,
        gates,
        states,
        carried,
        *k.stride(),
        *v.stride(),
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

    gla_dcarry[(NV * B * HQ, NS)](
        q,
        do,
        gates,
        dstates,
        dcarried,
        *q.stride(),
        *do.stride(),
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

    gla_dpairs[(NC * B * HQ,)](
        q,
        k,
        v,
        do,
        u_g,
        gates,
        carried,
        dcarried,
        dq,
        dkeys,
        du_g_b_t_h_k,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_g.stride(),
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
        LEVELS=6,
        num_warps=8,
        num_stages=1,
    )

    gla_dvalue[(NC * B * HKV,)](
        k,
        do,
        gates,
        pairs,
        dcarried,
        dv,
        *k.stride(),
        *do.stride(),
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

    # the heads of a group share a key
    dk = dkeys.unflatten(2, (HKV, -1)).sum(3).to(q.dtype)
    return (
        dq,
        dk,
        dv,
        du_g_b_t_h_k.permute(0, 2, 1, 3).to(u_g.dtype),
    )
