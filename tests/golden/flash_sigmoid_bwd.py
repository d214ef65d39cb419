"""flash_sigmoid: parallel backward, emitted by attnc.

variant     feature_map sigmoid(s), scale rsqrt(d), score s + bias[h], mask causal, normalize
            none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        dq: BT=128 BS=128 BK=64 BV=64, 8 warps, 3 stages
plan        dkv: BT=64 BS=128 BK=64 BV=64, 8 warps, 3 stages
sram        131072 of 232448 bytes (h100)
digest      62036c83b8833af1
regenerate  attnc emit flash_sigmoid --dim 64,64 --dtype bf16 --device h100 --form parallel
            --shape 4,4096 --heads 16,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    # exp of what is at most 0: no overflow on either side
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def flash_sigmoid_dq(
    q,  # [B, TQ, HQ, K]
    k,  # [B, TK, HKV, K]
    v,  # [B, TK, HKV, V]
    do,  # [B, TQ, HQ, V]
    u_bias,  # [h]
    dq,  # [B, TQ, HQ, K]
    du_bias_h,  # [B, HQ, NT]: sums of d bias[h]
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
    stride_u_bias_h,
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
    p_dq = dq + ((i_b * TQ + start_t) * HQ + i_h) * K

    # positions of the first and the last row
    first = i_t * BT + TK - TQ
    last = tl.minimum(first + BT, TK) - 1
    # some row sees a key of [lo, hi); every row sees all of [full_lo, full_hi)
    hi = tl.minimum(TK, tl.maximum(last + 1, 0))
    full_hi = tl.minimum(TK, tl.maximum(first + 1, 0))
    full_hi = full_hi // BS * BS
    b_u_bias = tl.load(u_bias + i_h * stride_u_bias_h).to(tl.float32)

    # [BT, BK]
    b_q = tl.load(
        p_q + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k,
        mask=m_t[:, None],
        other=0.0,
    )

    # [BT, BV]
    b_do = tl.load(
        p_do + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
        mask=m_t[:, None],
        other=0.0,
    )

    # accumulator
    b_dq = tl.zeros([BT, BK], tl.float32)

    # gradient of bias[h]
    b_a_bias_h = tl.zeros([BT], tl.float32)

    # full tiles: every row sees every key, no mask
    for i_s in range(0, full_hi, BS):
        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

        # the scores of the tile again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # do . v: gradient of the weight
        b_ds = tl.dot(b_do, tl.trans(b_v))

        # the weight of the declared score, and its derivatives
        b_s = b_s * 0.125
        b_y0 = sigmoid(b_u_bias + b_s)
        b_y1 = b_y0 * (1.0 - b_y0)
        b_ls = b_y1
        b_l_bias_h = b_y1
        b_g = b_ds * b_ls
        b_a_bias_h = b_a_bias_h + tl.sum(b_ds * b_l_bias_h, 1)

        # [BT, BS] @ [BS, BK]
        b_dq = tl.dot(b_g.to(b_k.dtype), b_k, b_dq)

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

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # the scores of the tile again
        b_s = tl.dot(b_q, tl.trans(b_k))

        # do . v: gradient of the weight
        b_ds = tl.dot(b_do, tl.trans(b_v))

        # the weight of the declared score, and its derivatives
        b_s = b_s * 0.125
        b_y0 = sigmoid(b_u_bias + b_s)
        b_y1 = b_y0 * (1.0 - b_y0)
        b_ls = b_y1
        b_l_bias_h = b_y1

        # what the mask hides weighs nothing
        m_st = o_s[None, :] <= b_i[:, None]
        m_st = m_st & m_t[:, None] & m_s[None, :]
        b_ls = tl.where(m_st, b_ls, 0.0)
        b_l_bias_h = tl.where(m_st, b_l_bias_h, 0.0)
        b_g = b_ds * b_ls
        b_a_bias_h = b_a_bias_h + tl.sum(b_ds * b_l_bias_h, 1)

        # [BT, BS] @ [BS, BK]
        b_dq = tl.dot(b_g.to(b_k.dtype), b_k, b_dq)

    # ds/dq = scale * k
    b_dq = b_dq * 0.125

    # [BT, BK]
    tl.store(
        p_dq + r_t[:, None] * HQ * K + o_k[None, :],
        b_dq.to(dq.dtype.element_ty),
        mask=m_t[:, None],
    )
    tl.store(du_bias_h + i_bh * NT + i_t, tl.sum(tl.where(m_t, b_a_bias_h, 0.0), 0))


@triton.jit(do_not_specialize=["TQ", "TK", "HQ", "HKV"])
def flash_sigmoid_dkv(
    q,  # [B, TQ, HQ, K]
    k,  # [B, TK, HKV, K]
    v,  # [B, TK, HKV, V]
    do,  # [B, TQ, HQ, V]
    u_bias,  # [h]
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
    stride_u_bias_h,
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
    # some key is seen by a row of [lo, hi); every key is seen by all of [full_lo, full_hi)
    hi = TQ
    full_hi = TQ
    lo = tl.maximum(0, first - (TK - TQ))
    full_lo = tl.maximum(0, last - (TK - TQ))
    lo = tl.minimum(lo, hi) // BT * BT
    full_lo = tl.minimum(tl.cdiv(full_lo, BT) * BT, tl.cdiv(hi, BT) * BT)
    full_hi = tl.maximum(full_hi // BT * BT, full_lo)

    # [BS, BK]
    b_k = tl.load(
        p_k + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k,
        mask=m_s[:, None],
        other=0.0,
    )

    # [BS, BV]
    b_v = tl.load(
        p_v + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
        mask=m_s[:, None],
        other=0.0,
    )

    # accumulator, K channels
    b_dk = tl.zeros([BS, BK], tl.float32)

    # accumulator, V channels
    b_dv = tl.zeros([BS, BV], tl.float32)

    for i_g in range(HQ // HKV):
        i_h = i_hkv * (HQ // HKV) + i_g
        p_q = q + i_b * stride_q_b + i_h * stride_q_h
        p_do = do + i_b * stride_do_b + i_h * stride_do_h
        b_u_bias = tl.load(u_bias + i_h * stride_u_bias_h).to(tl.float32)

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

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # do . v: gradient of the weight
            b_ds = tl.dot(b_v, tl.trans(b_do))

            # the weight of the declared score, and its derivatives
            b_s = b_s * 0.125
            b_y0 = sigmoid(b_u_bias + b_s)
            b_y1 = b_y0 * (1.0 - b_y0)
            b_p = b_y0
            b_ls = b_y1
            b_l_bias_h = b_y1

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = tl.where(m_st, b_p, 0.0)
            b_ls = tl.where(m_st, b_ls, 0.0)
            b_l_bias_h = tl.where(m_st, b_l_bias_h, 0.0)
            b_g = b_ds * b_ls

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

        # full tiles: every row sees every key, no mask
        for i_t in range(full_lo, full_hi, BT):
            # [BT, BK]
            p_qt = p_q + tl.cast(i_t, tl.int64) * stride_q_t
            b_q = tl.load(p_qt + r_t[:, None] * stride_q_t + o_k[None, :] * stride_q_k)

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v)

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # do . v: gradient of the weight
            b_ds = tl.dot(b_v, tl.trans(b_do))

            # the weight of the declared score, and its derivatives
            b_s = b_s * 0.125
            b_y0 = sigmoid(b_u_bias + b_s)
            b_y1 = b_y0 * (1.0 - b_y0)
            b_p = b_y0
            b_ls = b_y1
            b_l_bias_h = b_y1
            b_g = b_ds * b_ls

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

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

            # [BT, BV]
            p_dot = p_do + tl.cast(i_t, tl.int64) * stride_do_t
            b_do = tl.load(
                p_dot + r_t[:, None] * stride_do_t + o_v[None, :] * stride_do_v,
                mask=m_t[:, None],
                other=0.0,
            )

            # the scores of the tile again
            b_s = tl.dot(b_k, tl.trans(b_q))

            # do . v: gradient of the weight
            b_ds = tl.dot(b_v, tl.trans(b_do))

            # the weight of the declared score, and its derivatives
            b_s = b_s * 0.125
            b_y0 = sigmoid(b_u_bias + b_s)
            b_y1 = b_y0 * (1.0 - b_y0)
            b_p = b_y0
            b_ls = b_y1
            b_l_bias_h = b_y1

            # what the mask hides weighs nothing
            m_st = o_s[:, None] <= b_i[None, :]
            m_st = m_st & m_t[None, :] & m_s[:, None]
            b_p = tl.where(m_st, b_p, 0.0)
            b_ls = tl.where(m_st, b_ls, 0.0)
            b_l_bias_h = tl.where(m_st, b_l_bias_h, 0.0)
            b_g = b_ds * b_ls

            # [BS, BT] @ [BT, BV]
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv)

            # [BS, BT] @ [BT, BK]
            b_dk = tl.dot(b_g.to(b_q.dtype), b_q, b_dk)

    # ds/dk = scale * q
    b_dk = b_dk * 0.125

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


def backward(q, k, v, u_bias, do):
    """Gradients by the parallel form, for K = 64, V = 64.

    q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V]; the rest as the forward has it.
    Returns dq, dk, dv, du_bias.
    """
    B, TQ, HQ, _ = q.shape
    TK, HKV = k.shape[1:3]
    dq = torch.empty((B, TQ, HQ, 64), dtype=q.dtype, device=q.device)
    dk = torch.empty((B, TK, HKV, 64), dtype=q.dtype, device=q.device)
    dv = torch.empty((B, TK, HKV, 64), dtype=q.dtype, device=q.device)

    # partial sums of the declared tensors' gradients: each element has one writer
    NT = triton.cdiv(TQ, 128)
    du_bias_h = torch.empty((B, HQ, NT), dtype=torch.float32, device=q.device)

    flash_sigmoid_dq[(triton.cdiv(TQ, 128) * B * HQ,)](
        q,
        k,
        v,
        do,
        u_bias,
        dq,
        du_bias_h,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_bias.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        K=64,
        V=64,
        BT=128,
        BS=128,
        BK=64,
        BV=64,
        num_warps=8,
        num_stages=3,
    )

    flash_sigmoid_dkv[(triton.cdiv(TK, 128) * B * HKV,)](
        q,
        k,
        v,
        do,
        u_bias,
        dk,
        dv,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *do.stride(),
        *u_bias.stride(),
        TQ,
        TK,
        HQ,
        HKV,
        K=64,
        V=64,
        BT=64,
        BS=128,
        BK=64,
        BV=64,
        num_warps=8,
        num_stages=3,
    )

    return (
        dq,
        dk,
        dv,
        du_bias_h.sum((0, 2)).to(u_bias.dtype),
    )
