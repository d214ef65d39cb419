"""gated: chunked forward, emitted by attnc.

variant     feature_map identity, scale rsqrt(d), mask causal, log_decay -softplus(g[b, t, h]),
            normalize none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        state: BC=64 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        output: BC=64 BK=64 BV=64, 4 warps, 3 stages
sram        66048 of 232448 bytes (h100)
digest      bd45f80d5d5edb34
regenerate  attnc emit gated --dim 64,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16
"""

import torch
import triton
import triton.language as tl


@triton.jit
def log1p(x):
    # log(1 + x) with the digits that 1 + x rounds away given back
    whole = 1.0 + x
    return tl.where(whole == 1.0, x, tl.log(whole) * (x / (whole - 1.0)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gated_state(
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    u_g,  # [b, t, h]
    states,  # [B, HS, NS, FP, V]
    decays,  # [B, HS, NS]: log2 decay of a segment
    stride_k_b,
    stride_k_t,
    stride_k_h,
    stride_k_k,
    stride_v_b,
    stride_v_t,
    stride_v_h,
    stride_v_v,
    stride_u_g_b,
    stride_u_g_t,
    stride_u_g_h,
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

    # the state of this segment, from zero
    b_h0 = tl.zeros([64, BV], tl.float32)

    # log2 decay of the whole segment
    b_gs = tl.zeros([], tl.float32)

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
        p_u_g = u_g + i_b * stride_u_g_b + o_t.to(tl.int64) * stride_u_g_t
        b_u_g = tl.load(
            p_u_g + i_h * stride_u_g_h,
            mask=m_t,
            other=0.0,
        ).to(tl.float32)

        # log2 decay of each token
        b_a = -softplus(b_u_g)
        b_a = tl.where(m_t, b_a * 1.4426950408889634, 0.0)

        # log2 decay from the chunk's start through each token
        b_g = tl.cumsum(b_a, 0)
        b_gl = tl.sum(tl.where(r_c == BC - 1, b_g, 0.0), 0)

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2(b_gl - b_g)
        b_l = tl.exp2(b_gl)
        b_vu = b_v * b_u[:, None]
        b_vu = b_vu.to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)
        b_gs = b_gs + b_gl

    # rows 0 to 63 of the state
    r_f0 = tl.arange(0, 64)
    tl.store(p_states + r_f0[:, None] * V + o_v[None, :], b_h0)
    tl.store(decays + i_bh * NS + i_n, b_gs)


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gated_scan(
    states,  # [B, HS, NS, FP, V]
    decays,  # [B, HS, NS]
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
        b_gs = tl.load(decays + i_bh * NS + i_n)
        b_h = b_h * tl.exp2(b_gs) + b_x


@triton.jit(do_not_specialize=["T", "HQ", "HKV", "HS", "NS", "CPS"])
def gated_output(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    u_g,  # [b, t, h]
    states,  # [B, HS, NS, FP, V]
    o,  # [B, T, HQ, V]
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
    stride_u_g_b,
    stride_u_g_t,
    stride_u_g_h,
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
    i_hs = i_h // (HQ // HS)
    i_hkv = i_h // (HQ // HKV)
    first = i_n * CPS
    last = tl.minimum(first + CPS, tl.cdiv(T, BC))

    r_c = tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)
    m_v = o_v < V
    # segment 0 starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_o = o + (i_b * T * HQ + i_h) * V
    p_states = states + ((i_b * HS + i_hs) * NS + i_n) * (FP * V)

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

        # [BC, BV]
        p_vt = p_v + tl.cast(i_c * BC, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_c[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_t[:, None],
            other=0.0,
        )
        p_u_g = u_g + i_b * stride_u_g_b + o_t.to(tl.int64) * stride_u_g_t
        b_u_g = tl.load(
            p_u_g + i_h * stride_u_g_h,
            mask=m_t,
            other=0.0,
        ).to(tl.float32)

        # log2 decay of each token
        b_a = -softplus(b_u_g)
        b_a = tl.where(m_t, b_a * 1.4426950408889634, 0.0)

        # log2 decay from the chunk's start through each token
        b_g = tl.cumsum(b_a, 0)
        b_gl = tl.sum(tl.where(r_c == BC - 1, b_g, 0.0), 0)

        # inside the chunk: [BC, BK] @ [BK, BC]
        b_s = tl.dot(b_q, tl.trans(b_k))
        b_w = b_s
        b_w = b_w * tl.exp2(b_g[:, None] - b_g[None, :])
        b_w = tl.where(r_c[:, None] >= r_c[None, :], b_w, 0.0)

        # [BC, BC] @ [BC, BV]
        b_o = tl.dot(b_w.to(b_v.dtype), b_v)

        # decay from the chunk's start to each row
        b_qg = b_q * tl.exp2(b_g)[:, None]
        b_qg = b_qg.to(v.dtype.element_ty)

        # from the state: [BC, 64] @ [64, BV]
        b_o = tl.dot(b_qg, b_h0.to(b_v.dtype), b_o)

        # the scale of a linear weight, once a row
        b_o = b_o * 0.125

        # [BC, BV]
        p_ot = p_o + tl.cast(i_c * BC, tl.int64) * HQ * V
        tl.store(
            p_ot + r_c[:, None] * HQ * V + o_v[None, :],
            b_o.to(o.dtype.element_ty),
            mask=m_t[:, None] & m_v[None, :],
        )

        # decay from each token to the chunk's end, and over the whole chunk
        b_u = tl.exp2(b_gl - b_g)
        b_l = tl.exp2(b_gl)
        b_vu = b_v * b_u[:, None]
        b_vu = b_vu.to(v.dtype.element_ty)
        b_h0 = b_h0 * b_l

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_k), b_vu, b_h0)


def forward(q, k, v, g):
    """Attention by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V].
    Returns o [B, T, HQ, V].
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HQ
    NV = triton.cdiv(64, 64)
    o = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)

    # as many segments as 264 programs hold, each at least 4 chunks long
    NC = triton.cdiv(T, 64)
    NS = max(1, min(264 // (B * HQ * NV), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    states = torch.empty((B, HS, NS, 4096), dtype=torch.float32, device=q.device)
    decays = torch.empty((B, HS, NS), dtype=torch.float32, device=q.device)
    if NS > 1:
        gated_state[(NV * B * HS, NS - 1)](
            k,
            v,
            g,
            states,
            decays,
            *k.stride(),
            *v.stride(),
            *g.stride(),
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

        gated_scan[(triton.cdiv(4096, 512) * B * HS,)](
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

    gated_output[(NV * B * HQ, NS)](
        q,
        k,
        v,
        g,
        states,
        o,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *g.stride(),
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

    return o
