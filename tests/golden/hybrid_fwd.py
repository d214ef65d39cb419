"""hybrid: chunked forward, emitted by attnc.

variant     term (softmax, score s - 0.1 * (i - j), scale rsqrt(d), mask causal & window(63)),
            term (elu(x) + 1, scale 0.125, mask i - j >= 64, factor exp(mix[h])), sink z[h],
            normalize sum
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        state: BC=64 LAG=1 BK=64 BV=64, 4 warps, 3 stages
plan        scan: BC=64 BE=512, 4 warps, 1 stages
plan        sum_output: BC=64 LAG=1 BT=64 BS=64 BK=64 BV=64, 4 warps, 3 stages
sram        57344 of 232448 bytes (h100)
digest      efdf7171c3956a49
regenerate  attnc emit hybrid --dim 64,64 --dtype bf16 --device h100 --form chunked --shape
            4,4096 --heads 16,16
"""

import torch
import triton
import triton.language as tl


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
def hybrid_sum_output(
    q,  # [B, T, HQ, K]
    k,  # [B, T, HKV, K]
    v,  # [B, T, HKV, V]
    u_mix,  # [h]
    u_z,  # [h]
    states,  # [B, HS, NS, SLOT]: FP * V, then FP sums
    o,  # [B, T, HQ, V]
    lse,  # [B, HQ, T]: natural log
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
    stride_u_mix_h,
    stride_u_z_h,
    T,
    HQ,
    HKV,
    HS,
    NS,
    CPS,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,
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
    i_hs = i_h // (HQ // HS)
    i_hkv = i_h // (HQ // HKV)
    # queries and keys are the same tokens
    TK = T
    start = i_n * CPS
    stop = tl.minimum(start + CPS, tl.cdiv(TK, BC))

    # r_ counts in the tile, o_ in the tensor
    r_t = tl.arange(0, BT)
    r_c = tl.arange(0, BC)
    r_s = tl.arange(0, BS)
    o_k = tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)
    m_v = o_v < V
    # segment 0 starts from zero: it loads no row of a state
    n_f = tl.where(i_n > 0, FP, 0)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_o = o + (i_b * T * HQ + i_h) * V
    p_lse = lse + i_bh * T
    p_states = states + ((i_b * HS + i_hs) * NS + i_n) * (FP * V + FP)
    b_u_mix = tl.load(u_mix + i_h * stride_u_mix_h).to(tl.float32)
    b_u_z = tl.load(u_z + i_h * stride_u_z_h).to(tl.float32)

    # the factor of term 2
    b_f2 = tl.exp(b_u_mix)

    # the sink's logit, in log2
    b_sink = b_u_z
    b_sink = b_sink * 1.4426950408889634

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

    for i_c in range(start, stop):
        # the rows of this chunk
        b_i = i_c * BT + r_t
        m_t = b_i < TK

        # [BT, BK]
        p_qt = p_q + tl.cast(i_c * BT, tl.int64) * stride_q_t
        b_q = tl.load(
            p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
            mask=m_t[:, None],
            other=0.0,
        )

        # phi, in the accumulator's precision
        b_q2x = b_q.to(tl.float32)
        b_q2 = 1.0 + tl.where(b_q2x > 0.0, b_q2x, tl.exp(b_q2x) - 1.0)
        b_q2 = tl.where(m_t[:, None], b_q2, 0.0)
        b_q2 = b_q2.to(v.dtype.element_ty)

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
        b_n = tl.sum(b_q2 * b_z0[None, :], 1)

        # from the state: [BT, 64] @ [64, BV]
        b_o = tl.dot(b_q2, b_h0.to(v.dtype.element_ty))
        b_z0 = b_z0 + tl.sum(b_kl.to(tl.float32), 0)

        # [64, BC] @ [BC, BV]
        b_h0 = tl.dot(tl.trans(b_kl), b_vl, b_h0)

        # what the state weighs, as one key
        b_n = tl.maximum(b_n, 0.0) * 0.125 * b_f2

        # running maximum, in log2
        b_m = tl.maximum(tl.log2(b_n), b_sink)
        b_ms = tl.where(b_m == float("-inf"), 0.0, b_m)
        b_e = tl.exp2(-tl.maximum(b_ms, -126.0))

        # running sum
        b_l = b_n * b_e + tl.exp2(b_sink - b_ms)
        b_o = b_o * (b_e * 0.125 * b_f2)[:, None]

        # indices as numbers, exact to 2**24
        f_i = b_i.to(tl.float32)

        first = i_c * BT
        last = tl.minimum(first + BT, TK) - 1

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

            # [BS, BK]
            p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
            b_k = tl.load(
                p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
                mask=m_s[:, None],
                other=0.0,
            )

            # [BT, BK] @ [BK, BS]
            b_s = tl.dot(b_q, tl.trans(b_k))

            # the declared score, in log2
            f_j = o_s.to(tl.float32)
            b_s = b_s * 0.125
            b_s = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
            b_s = b_s * 1.4426950408889634

            # what the mask hides weighs exp(-inf) = 0
            m_st = (o_s[None, :] >= b_i[:, None] - 63) & (o_s[None, :] <= b_i[:, None])
            b_s = tl.where(m_st, b_s, float("-inf"))

            # online softmax: the new maximum rescales what was summed so far
            b_mn = tl.maximum(b_m, tl.max(b_s, 1))
            b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)
            b_a = tl.exp2(b_m - b_ms)
            b_p = tl.exp2(b_s - b_ms[:, None])
            b_l = b_l * b_a + tl.sum(b_p, 1)
            b_m = b_mn
            b_o = b_o * b_a[:, None]

            # [BS, BV]
            p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
            b_v = tl.load(
                p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
                mask=m_s[:, None],
                other=0.0,
            )

            # [BT, BS] @ [BS, BV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o)

        # full tiles: every row sees every key, no mask
        for i_s in range(full_lo, full_hi, BS):
            o_s = i_s + r_s

            # [BS, BK]
            p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
            b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

            # [BT, BK] @ [BK, BS]
            b_s = tl.dot(b_q, tl.trans(b_k))

            # the declared score, in log2
            f_j = o_s.to(tl.float32)
            b_s = b_s * 0.125
            b_s = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
            b_s = b_s * 1.4426950408889634

            # online softmax: the new maximum rescales what was summed so far
            b_mn = tl.maximum(b_m, tl.max(b_s, 1))
            b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)
            b_a = tl.exp2(b_m - b_ms)
            b_p = tl.exp2(b_s - b_ms[:, None])
            b_l = b_l * b_a + tl.sum(b_p, 1)
            b_m = b_mn
            b_o = b_o * b_a[:, None]

            # [BS, BV]
            p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
            b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

            # [BT, BS] @ [BS, BV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o)

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

            # [BT, BK] @ [BK, BS]
            b_s = tl.dot(b_q, tl.trans(b_k))

            # the declared score, in log2
            f_j = o_s.to(tl.float32)
            b_s = b_s * 0.125
            b_s = 0.1 * f_j[None, :] + b_s - 0.1 * f_i[:, None]
            b_s = b_s * 1.4426950408889634

            # what the mask hides weighs exp(-inf) = 0
            m_st = (o_s[None, :] >= b_i[:, None] - 63) & (o_s[None, :] <= b_i[:, None])
            b_s = tl.where(m_st, b_s, float("-inf"))

            # online softmax: the new maximum rescales what was summed so far
            b_mn = tl.maximum(b_m, tl.max(b_s, 1))
            b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)
            b_a = tl.exp2(b_m - b_ms)
            b_p = tl.exp2(b_s - b_ms[:, None])
            b_l = b_l * b_a + tl.sum(b_p, 1)
            b_m = b_mn
            b_o = b_o * b_a[:, None]

            # [BS, BV]
            p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
            b_v = tl.load(
                p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
                mask=m_s[:, None],
                other=0.0,
            )

            # [BT, BS] @ [BS, BV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o)

        # term 2: exp(mix[h]) * (s)
        # the state holds all keys before lo
        lo = tl.maximum(i_c - LAG, 0) * BC
        # some row sees a key of [lo, hi); every row sees all of [full_lo, full_hi)
        hi = tl.minimum(TK, tl.maximum(last - 63, 0))
        full_hi = tl.minimum(TK, tl.maximum(first - 63, 0))
        full_hi = full_hi // BS * BS

        # full tiles: every row sees every key, no mask
        for i_s in range(lo, full_hi, BS):
            # [BS, BK]
            p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
            b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

            # phi, in the accumulator's precision
            b_kx = b_k.to(tl.float32)
            b_k = 1.0 + tl.where(b_kx > 0.0, b_kx, tl.exp(b_kx) - 1.0)
            b_k = b_k.to(v.dtype.element_ty)

            # [BT, BK] @ [BK, BS]
            b_s = tl.dot(b_q2, tl.trans(b_k))

            # the weight, a polynomial of s
            b_w = 0.125 * b_s
            b_w = b_w * b_f2

            # online softmax: the new maximum rescales what was summed so far
            b_mn = tl.maximum(b_m, tl.log2(tl.max(b_w, 1)))
            b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)
            b_a = tl.exp2(b_m - b_ms)

            # over the largest weight so far, as exp2(s - maximum) is
            b_p = b_w * tl.exp2(-tl.maximum(b_ms, -126.0))[:, None]
            b_l = b_l * b_a + tl.sum(b_p, 1)
            b_m = b_mn
            b_o = b_o * b_a[:, None]

            # [BS, BV]
            p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
            b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

            # [BT, BS] @ [BS, BV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o)

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

            # [BT, BK] @ [BK, BS]
            b_s = tl.dot(b_q2, tl.trans(b_k))

            # the weight, a polynomial of s
            b_w = 0.125 * b_s
            b_w = b_w * b_f2

            # what the mask hides weighs 0
            m_st = o_s[None, :] <= b_i[:, None] - 64
            b_w = tl.where(m_st, b_w, 0.0)

            # online softmax: the new maximum rescales what was summed so far
            b_mn = tl.maximum(b_m, tl.log2(tl.max(b_w, 1)))
            b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)
            b_a = tl.exp2(b_m - b_ms)

            # over the largest weight so far, as exp2(s - maximum) is
            b_p = b_w * tl.exp2(-tl.maximum(b_ms, -126.0))[:, None]
            b_l = b_l * b_a + tl.sum(b_p, 1)
            b_m = b_mn
            b_o = b_o * b_a[:, None]

            # [BS, BV]
            p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
            b_v = tl.load(
                p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
                mask=m_s[:, None],
                other=0.0,
            )

            # [BT, BS] @ [BS, BV]
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o)

        # a row that saw nothing but the sink gives 0
        b_o = b_o / b_l[:, None]
        b_lse = b_m * 0.6931471805599453 + tl.log(b_l)
        tl.store(
            p_lse + b_i,
            b_lse,
            mask=m_t,
        )

        # [BT, BV]
        p_ot = p_o + tl.cast(i_c * BT, tl.int64) * HQ * V
        tl.store(
            p_ot + r_t[:, None] * HQ * V + o_v[None, :],
            b_o.to(o.dtype.element_ty),
            mask=m_t[:, None] & m_v[None, :],
        )


def forward(q, k, v, mix, z):
    """Attention by the chunked form, for K = 64, V = 64.

    q [B, T, HQ, K], k [B, T, HKV, K], v [B, T, HKV, V].
    Returns o [B, T, HQ, V] and lse [B, HQ, T].
    """
    B, T, HQ, _ = q.shape
    HKV = k.shape[2]
    HS = HKV
    NV = triton.cdiv(64, 64)
    o = torch.empty((B, T, HQ, 64), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, HQ, T), dtype=torch.float32, device=q.device)

    # as many segments as 264 programs hold, each at least 4 chunks long
    NC = triton.cdiv(T, 64)
    NS = max(1, min(264 // (B * HQ * NV), NC // 4))
    CPS = triton.cdiv(NC, NS)
    NS = triton.cdiv(NC, CPS)

    states = torch.empty((B, HS, NS, 4160), dtype=torch.float32, device=q.device)
    if NS > 1:
        hybrid_state[(NV * B * HS, NS - 1)](
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

    hybrid_sum_output[(NV * B * HQ, NS)](
        q,
        k,
        v,
        mix,
        z,
        states,
        o,
        lse,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *mix.stride(),
        *z.stride(),
        T,
        HQ,
        HKV,
        HS,
        NS,
        CPS,
        K=64,
        V=64,
        BT=64,
        BC=64,
        BS=64,
        BK=64,
        BV=64,
        FP=64,
        LAG=1,
        num_warps=4,
        num_stages=3,
    )

    return o, lse
