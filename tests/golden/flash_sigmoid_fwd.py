"""flash_sigmoid: parallel forward, emitted by attnc.

variant     feature_map sigmoid(s), scale rsqrt(d), score s + bias[h], mask causal, normalize
            none
dims        K=64 V=64, bf16 in, fp32 accumulators
plan        parallel: BT=128 BS=64 BK=64 BV=64, 8 warps, 3 stages
sram        65536 of 232448 bytes (h100)
digest      5d9fc5536518e3c7
regenerate  attnc emit flash_sigmoid --dim 64,64 --dtype bf16 --device h100 --form parallel
            --shape 4,4096 --heads 16,16
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
def flash_sigmoid_parallel(
    q,  # [B, TQ, HQ, K]
    k,  # [B, TK, HKV, K]
    v,  # [B, TK, HKV, V]
    u_bias,  # [h]
    o,  # [B, TQ, HQ, V]
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
    m_v = o_v < V
    b_i = o_t + (TK - TQ)

    p_q = q + i_b * stride_q_b + i_h * stride_q_h + tl.cast(i_t * BT, tl.int64) * stride_q_t
    p_k = k + i_b * stride_k_b + i_hkv * stride_k_h
    p_v = v + i_b * stride_v_b + i_hkv * stride_v_h
    p_o = o + ((i_b * TQ + i_t * BT) * HQ + i_h) * V

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

    # accumulator
    b_o = tl.zeros([BT, BV], tl.float32)

    # full tiles: every row sees every key, no mask
    for i_s in range(0, full_hi, BS):
        # [BS, BK]
        p_kt = p_k + tl.cast(i_s, tl.int64) * stride_k_t
        b_k = tl.load(p_kt + r_s[:, None] * stride_k_t + o_k[None, :] * stride_k_k)

        # [BT, BK] @ [BK, BS]
        b_s = tl.dot(b_q, tl.trans(b_k))

        # the weight, of the declared score
        b_s = b_s * 0.125
        b_w = sigmoid(b_u_bias + b_s)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v)

        # [BT, BS] @ [BS, BV]
        b_o = tl.dot(b_w.to(b_v.dtype), b_v, b_o)

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

        # the weight, of the declared score
        b_s = b_s * 0.125
        b_w = sigmoid(b_u_bias + b_s)

        # what the mask hides weighs 0
        m_st = o_s[None, :] <= b_i[:, None]
        b_w = tl.where(m_st, b_w, 0.0)

        # [BS, BV]
        p_vt = p_v + tl.cast(i_s, tl.int64) * stride_v_t
        b_v = tl.load(
            p_vt + r_s[:, None] * stride_v_t + o_v[None, :] * stride_v_v,
            mask=m_s[:, None],
            other=0.0,
        )

        # [BT, BS] @ [BS, BV]
        b_o = tl.dot(b_w.to(b_v.dtype), b_v, b_o)

    # [BT, BV]
    tl.store(
        p_o + r_t[:, None] * HQ * V + o_v[None, :],
        b_o.to(o.dtype.element_ty),
        mask=m_t[:, None] & m_v[None, :],
    )


def forward(q, k, v, bias):
    """Attention by the parallel form, for K = 64, V = 64.

    q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V].
    Returns o [B, TQ, HQ, V].
    """
    B, TQ, HQ, _ = q.shape
    TK, HKV = k.shape[1:3]
    o = torch.empty((B, TQ, HQ, 64), dtype=q.dtype, device=q.device)
    flash_sigmoid_parallel[(triton.cdiv(TQ, 128) * B * HQ,)](
        q,
        k,
        v,
        bias,
        o,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *bias.stride(),
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
        num_warps=8,
        num_stages=3,
    )

    return o
