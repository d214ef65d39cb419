"""past: fft backward, emitted by attnc.

variant     weight w[c, i-j], mask (i - j >= 2) & (i - j < 40), skip D[c], postgate g[b, t, c]
dims        bf16 in, fp32 accumulators
plan        dfft: N1=32 N2=16 NH=16, 4 warps, 1 stages
plan        dspectrum: N1=32 N2=16 NH=16, 4 warps, 1 stages
sram        8704 of 232448 bytes (h100)
digest      702ef0648051c12f
regenerate  attnc emit past --dtype bf16 --device h100 --form fft --shape 4,4096,16 --backward
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["B", "C", "FIRST", "LAST"])
def past_dfft(
    do,  # [B, C, T]
    u_g,  # [B, C, T]
    spectrum,  # [C, pieces, 2, N1, N2]
    f1,  # [3, N1, NH]: re, im, -im
    f2,  # [3, N2, N2]: re, im, -im
    twiddle,  # [2, N1, N2]
    u_D,  # [C]
    dv,  # [B, C, T]
    stride_do_b,
    stride_do_c,
    stride_u_g_b,
    stride_u_g_c,
    stride_u_D_c,
    B,
    T,
    C,
    FIRST,
    LAST,
    N1: tl.constexpr,
    N2: tl.constexpr,
    NH: tl.constexpr,
):
    # one program: rows a and b of one channel; blocks of all sequences stand in one line
    BL: tl.constexpr = NH * N2
    NT = tl.cdiv(T, BL)
    NP = tl.cdiv(NT * B, 2)
    i_c = (tl.program_id(0) // NP).to(tl.int64)
    o_a = tl.program_id(0) % NP * 2
    o_b = o_a + 1
    i_na = o_a // B
    i_nb = o_b // B
    i_ba = (o_a % B).to(tl.int64)
    i_bb = (o_b % B).to(tl.int64)
    # the last pair may have one row
    T_b = tl.where(o_b < NT * B, T, 0)

    r_1 = tl.arange(0, N1)
    r_2 = tl.arange(0, N2)
    r_h = tl.arange(0, NH)
    o_e = r_h[:, None] * N2 + r_2[None, :]
    o_n = r_1[:, None] * N2 + r_2[None, :]

    p_do_a = do + i_ba * stride_do_b + i_c * stride_do_c
    p_u_g_a = u_g + i_ba * stride_u_g_b + i_c * stride_u_g_c
    p_dv_a = dv + (i_ba * C + i_c) * T
    p_do_b = do + i_bb * stride_do_b + i_c * stride_do_c
    p_u_g_b = u_g + i_bb * stride_u_g_b + i_c * stride_u_g_c
    p_dv_b = dv + (i_bb * C + i_c) * T
    p_u_D = u_D + i_c * stride_u_D_c

    lo = tl.maximum(FIRST, -i_nb)
    hi = tl.minimum(LAST, NT - 1 - i_na) + 1

    # the DFT of N1 points
    o_f1 = r_1[:, None] * NH + r_h[None, :]
    b_f1r = tl.load(f1 + o_f1)
    b_f1i = tl.load(f1 + N1 * NH + o_f1)
    b_f1n = tl.load(f1 + 2 * N1 * NH + o_f1)

    # the DFT of N2 points
    o_f2 = r_2[:, None] * N2 + r_2[None, :]
    b_f2r = tl.load(f2 + o_f2)
    b_f2i = tl.load(f2 + N2 * N2 + o_f2)
    b_f2n = tl.load(f2 + 2 * N2 * N2 + o_f2)

    # the sum over pieces
    b_sr = tl.zeros([N1, N2], tl.float32)
    b_si = tl.zeros([N1, N2], tl.float32)

    # pieces of the filter, a block apart
    for i_m in range(lo, hi):
        # row a: [NH, N2]
        o_sa = (i_na + i_m) * BL + o_e
        m_a = (o_sa >= 0) & (o_sa < T)
        b_xr = tl.load(
            p_do_a + o_sa,
            mask=m_a,
            other=0.0,
        )
        b_ga = tl.load(
            p_u_g_a + o_sa,
            mask=m_a,
            other=0.0,
        )
        b_xr = b_xr.to(tl.float32) * b_ga.to(tl.float32)
        b_xr = b_xr.to(do.dtype.element_ty)
        o_sb = (i_nb + i_m) * BL + o_e
        m_b = (o_sb >= 0) & (o_sb < T_b)
        b_xi = tl.load(
            p_do_b + o_sb,
            mask=m_b,
            other=0.0,
        )
        b_gb = tl.load(
            p_u_g_b + o_sb,
            mask=m_b,
            other=0.0,
        )
        b_xi = b_xi.to(tl.float32) * b_gb.to(tl.float32)
        b_xi = b_xi.to(do.dtype.element_ty)

        # both rows, forward: [N1, NH] @ [NH, N2]
        b_ar = tl.dot(b_f1r, b_xr)
        b_ar = tl.dot(b_f1n, b_xi, b_ar)
        b_ai = tl.dot(b_f1r, b_xi)
        b_ai = tl.dot(b_f1i, b_xr, b_ai)
        b_tr = tl.load(twiddle + o_n)
        b_ti = tl.load(twiddle + N1 * N2 + o_n)
        b_hr = b_ar * b_tr - b_ai * b_ti
        b_hr = b_hr.to(do.dtype.element_ty)
        b_hi = b_ai * b_tr + b_ar * b_ti
        b_hi = b_hi.to(do.dtype.element_ty)

        # [N1, N2] @ [N2, N2]
        b_zr = tl.dot(b_hr, tl.trans(b_f2r))
        b_zr = tl.dot(b_hi, tl.trans(b_f2n), b_zr)
        b_zi = tl.dot(b_hr, tl.trans(b_f2i))
        b_zi = tl.dot(b_hi, tl.trans(b_f2r), b_zi)

        # the filter's transform, in the order of the products
        p_s = spectrum + (i_c * (LAST - FIRST + 1) + i_m - FIRST) * (2 * N1 * N2)
        b_wr = tl.load(p_s + o_n).to(tl.float32)
        b_wi = tl.load(p_s + N1 * N2 + o_n).to(tl.float32)
        b_sr += b_zr * b_wr + b_zi * b_wi
        b_si += b_zi * b_wr - b_zr * b_wi
    b_sr = b_sr.to(do.dtype.element_ty)
    b_si = b_si.to(do.dtype.element_ty)

    # and back: [N1, N2] @ [N2, N2]
    b_ar = tl.dot(b_sr, tl.trans(b_f2r))
    b_ar = tl.dot(b_si, tl.trans(b_f2i), b_ar)
    b_ai = tl.dot(b_si, tl.trans(b_f2r))
    b_ai = tl.dot(b_sr, tl.trans(b_f2n), b_ai)
    b_tr = tl.load(twiddle + o_n)
    b_ti = tl.load(twiddle + N1 * N2 + o_n)
    b_hr = b_ar * b_tr + b_ai * b_ti
    b_hr = b_hr.to(do.dtype.element_ty)
    b_hi = b_ai * b_tr - b_ar * b_ti
    b_hi = b_hi.to(do.dtype.element_ty)

    # [NH, N1] @ [N1, N2]
    b_yr = tl.dot(tl.trans(b_f1r), b_hr)
    b_yr = tl.dot(tl.trans(b_f1i), b_hi, b_yr)
    b_yi = tl.dot(tl.trans(b_f1r), b_hi)
    b_yi = tl.dot(tl.trans(b_f1n), b_hr, b_yi)

    # the token's own value, unfiltered
    b_d = tl.load(p_u_D).to(tl.float32)
    o_ta = i_na * BL + o_e
    m_ta = o_ta < T
    b_u = tl.load(
        p_do_a + o_ta,
        mask=m_ta,
        other=0.0,
    ).to(tl.float32)
    b_h = tl.load(
        p_u_g_a + o_ta,
        mask=m_ta,
        other=0.0,
    ).to(tl.float32)
    b_yr = b_yr + b_d * (b_u * b_h).to(do.dtype.element_ty).to(tl.float32)

    # [NH, N2]
    tl.store(
        p_dv_a + o_ta,
        b_yr.to(dv.dtype.element_ty),
        mask=m_ta,
    )
    o_tb = i_nb * BL + o_e
    m_tb = o_tb < T_b
    b_u = tl.load(
        p_do_b + o_tb,
        mask=m_tb,
        other=0.0,
    ).to(tl.float32)
    b_h = tl.load(
        p_u_g_b + o_tb,
        mask=m_tb,
        other=0.0,
    ).to(tl.float32)
    b_yi = b_yi + b_d * (b_u * b_h).to(do.dtype.element_ty).to(tl.float32)
    tl.store(
        p_dv_b + o_tb,
        b_yi.to(dv.dtype.element_ty),
        mask=m_tb,
    )


@triton.jit(do_not_specialize=["B", "C", "FIRST", "LAST", "PPS"])
def past_dspectrum(
    v,  # [B, C, T]
    do,  # [B, C, T]
    u_g,  # [B, C, T]
    f1,  # [3, N1, NH]: re, im, -im
    f2,  # [3, N2, N2]: re, im, -im
    twiddle,  # [2, N1, N2]
    partial,  # [S, C, pieces, 2, N1, N2]
    stride_v_b,
    stride_v_c,
    stride_do_b,
    stride_do_c,
    stride_u_g_b,
    stride_u_g_c,
    B,
    T,
    C,
    FIRST,
    LAST,
    PPS,
    N1: tl.constexpr,
    N2: tl.constexpr,
    NH: tl.constexpr,
):
    # one program: piece m of one channel, PPS pairs of rows
    BL: tl.constexpr = NH * N2
    NT = tl.cdiv(T, BL)
    NM = LAST - FIRST + 1
    i_m = tl.program_id(0) % NM + FIRST
    i_c = (tl.program_id(0) // NM).to(tl.int64)
    i_s = tl.program_id(1)

    r_1 = tl.arange(0, N1)
    r_2 = tl.arange(0, N2)
    r_h = tl.arange(0, NH)
    o_e = r_h[:, None] * N2 + r_2[None, :]
    o_n = r_1[:, None] * N2 + r_2[None, :]

    p_v = v + i_c * stride_v_c
    p_do = do + i_c * stride_do_c
    p_u_g = u_g + i_c * stride_u_g_c
    p_partial = partial + ((i_s * C + i_c) * NM + i_m - FIRST) * (2 * N1 * N2)

    # blocks of dz whose partner m blocks before lies in the sequence
    n_first = tl.maximum(i_m, 0)
    NR = (NT - tl.maximum(i_m, -i_m)) * B
    lo = i_s * PPS
    hi = tl.minimum(tl.cdiv(NR, 2), lo + PPS)

    # the DFT of N1 points
    o_f1 = r_1[:, None] * NH + r_h[None, :]
    b_f1r = tl.load(f1 + o_f1)
    b_f1i = tl.load(f1 + N1 * NH + o_f1)
    b_f1n = tl.load(f1 + 2 * N1 * NH + o_f1)

    # the DFT of N2 points
    o_f2 = r_2[:, None] * N2 + r_2[None, :]
    b_f2r = tl.load(f2 + o_f2)
    b_f2i = tl.load(f2 + N2 * N2 + o_f2)
    b_f2n = tl.load(f2 + 2 * N2 * N2 + o_f2)

    # the sum over rows
    b_sr = tl.zeros([N1, N2], tl.float32)
    b_si = tl.zeros([N1, N2], tl.float32)

    # pairs of rows
    for i_p in range(lo, hi):
        # row a: [NH, N2]
        o_a = i_p * 2
        i_na = n_first + o_a // B
        i_ba = (o_a % B).to(tl.int64)
        o_sa = (i_na - i_m) * BL + o_e
        p_v_a = p_v + i_ba * stride_v_b
        b_xr = tl.load(
            p_v_a + o_sa,
            mask=o_sa < T,
            other=0.0,
        )
        o_b = i_p * 2 + 1
        i_nb = n_first + o_b // B
        i_bb = (o_b % B).to(tl.int64)
        T_b = tl.where(o_b < NR, T, 0)
        o_sb = (i_nb - i_m) * BL + o_e
        p_v_b = p_v + i_bb * stride_v_b
        b_xi = tl.load(
            p_v_b + o_sb,
            mask=o_sb < T_b,
            other=0.0,
        )

        # u, forward: [N1, NH] @ [NH, N2]
        b_ar = tl.dot(b_f1r, b_xr)
        b_ar = tl.dot(b_f1n, b_xi, b_ar)
        b_ai = tl.dot(b_f1r, b_xi)
        b_ai = tl.dot(b_f1i, b_xr, b_ai)
        b_tr = tl.load(twiddle + o_n)
        b_ti = tl.load(twiddle + N1 * N2 + o_n)
        b_hr = b_ar * b_tr - b_ai * b_ti
        b_hr = b_hr.to(v.dtype.element_ty)
        b_hi = b_ai * b_tr + b_ar * b_ti
        b_hi = b_hi.to(v.dtype.element_ty)

        # [N1, N2] @ [N2, N2]
        b_ur = tl.dot(b_hr, tl.trans(b_f2r))
        b_ur = tl.dot(b_hi, tl.trans(b_f2n), b_ur)
        b_ui = tl.dot(b_hr, tl.trans(b_f2i))
        b_ui = tl.dot(b_hi, tl.trans(b_f2r), b_ui)
        b_ur = b_ur.to(v.dtype.element_ty)
        b_ui = b_ui.to(v.dtype.element_ty)

        # row a: [NH, N2]
        o_ta = i_na * BL + o_e
        p_do_a = p_do + i_ba * stride_do_b
        p_u_g_a = p_u_g + i_ba * stride_u_g_b
        b_xr = tl.load(
            p_do_a + o_ta,
            mask=o_ta < T,
            other=0.0,
        )
        b_ga = tl.load(
            p_u_g_a + o_ta,
            mask=o_ta < T,
            other=0.0,
        )
        b_xr = b_xr.to(tl.float32) * b_ga.to(tl.float32)
        b_xr = b_xr.to(v.dtype.element_ty)
        o_tb = i_nb * BL + o_e
        p_do_b = p_do + i_bb * stride_do_b
        p_u_g_b = p_u_g + i_bb * stride_u_g_b
        b_xi = tl.load(
            p_do_b + o_tb,
            mask=o_tb < T_b,
            other=0.0,
        )
        b_gb = tl.load(
            p_u_g_b + o_tb,
            mask=o_tb < T_b,
            other=0.0,
        )
        b_xi = b_xi.to(tl.float32) * b_gb.to(tl.float32)
        b_xi = b_xi.to(v.dtype.element_ty)

        # dz, forward: [N1, NH] @ [NH, N2]
        b_ar = tl.dot(b_f1r, b_xr)
        b_ar = tl.dot(b_f1n, b_xi, b_ar)
        b_ai = tl.dot(b_f1r, b_xi)
        b_ai = tl.dot(b_f1i, b_xr, b_ai)
        b_tr = tl.load(twiddle + o_n)
        b_ti = tl.load(twiddle + N1 * N2 + o_n)
        b_hr = b_ar * b_tr - b_ai * b_ti
        b_hr = b_hr.to(v.dtype.element_ty)
        b_hi = b_ai * b_tr + b_ar * b_ti
        b_hi = b_hi.to(v.dtype.element_ty)

        # [N1, N2] @ [N2, N2]
        b_zr = tl.dot(b_hr, tl.trans(b_f2r))
        b_zr = tl.dot(b_hi, tl.trans(b_f2n), b_zr)
        b_zi = tl.dot(b_hr, tl.trans(b_f2i))
        b_zi = tl.dot(b_hi, tl.trans(b_f2r), b_zi)
        b_sr += b_ur * b_zr + b_ui * b_zi
        b_si += b_ur * b_zi - b_ui * b_zr
    tl.store(p_partial + o_n, b_sr)
    tl.store(p_partial + N1 * N2 + o_n, b_si)


_TABLES: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}


def dft_tables(device, dtype):
    """DFT factors [3, 32, 16] and [3, 16, 16]: re, im, -im; twiddles [2, 32, 16]: re, im."""
    key = device, dtype
    if key not in _TABLES:
        rows, columns = (torch.arange(size, dtype=torch.float64) for size in (32, 16))
        turns = (
            torch.outer(rows, rows[:16]) / 32,
            torch.outer(columns, columns) / 16,
            torch.outer(rows, columns) / 512,
        )
        ones = (torch.ones_like(turn) for turn in turns)
        angles = (-2 * torch.pi * (turn - turn.floor()) for turn in turns)
        outer, inner, twiddle = map(torch.polar, ones, angles)
        outer, inner = outer * 32**-0.5, inner * 16**-0.5
        _TABLES[key] = (
            torch.stack([outer.real, outer.imag, -outer.imag]).to(device, dtype),
            torch.stack([inner.real, inner.imag, -inner.imag]).to(device, dtype),
            torch.stack([twiddle.real, twiddle.imag]).to(device, torch.float32),
        )
    return _TABLES[key]


def spectra(taps, low, first, last, dtype):
    """Transforms [C, pieces, 2, 32, 16] of the filter's pieces, as kernels multiply them.

    taps [C, taps] stand at the offsets from low on; piece m has those within 256 of m * 256.
    """
    channels, pieces = taps.shape[0], last - first + 1
    start, shape = (first - 1) * 256, (channels, (pieces + 1) * 256)
    wide = torch.zeros(shape, dtype=torch.float32, device=taps.device)
    begin, end = max(low, start), min(low + taps.shape[1], start + shape[1])
    if begin < end:
        wide[:, begin - start : end - start] = taps[:, begin - low : end - low]
    # offset 0 of a piece goes first, its negative offsets last
    windows = wide.unfold(1, 512, 256).roll(256, 2)
    found = torch.view_as_real(torch.fft.fft(windows))
    ordered = found.view(channels, pieces, 16, 32, 2).permute(0, 1, 4, 3, 2)
    return torch.empty(ordered.shape, dtype=dtype, device=taps.device).copy_(ordered)


def tap_sums(partial):
    """Sums by offset, [C, (pieces + 1) * 256], of partial sums [S, C, pieces, 2, 32, 16]."""
    found = partial.sum(0)
    channels, pieces = found.shape[:2]
    ordered = found.permute(0, 1, 4, 3, 2).reshape(channels, pieces, 512, 2)
    windows = torch.fft.ifft(torch.view_as_complex(ordered), norm="forward").real
    windows = windows.roll(256, 2)
    sums = windows.new_zeros((channels, (pieces + 1) * 256))
    # an offset that two pieces hold has pairs of tokens in both
    sums[:, : pieces * 256] += windows[..., :256].flatten(1)
    sums[:, 256:] += windows[..., 256:].flatten(1)
    return sums


def tokens_adjacent(x):
    """x [B, T, C] as [B, C, T] with its tokens adjacent in memory: copied where they are not."""
    x = x.transpose(1, 2)
    return x if x.stride(2) == 1 else x.clone(memory_format=torch.contiguous_format)


def backward(v, u_D, u_w, u_g, do):
    """Gradients of a convolution by the fft form.

    v, do [B, T, C], taps [C, taps], a skip [C], a gate [B, T, C].
    Returns dv, dD, dw.
    """
    B, T, C = v.shape
    v = tokens_adjacent(v)
    u_g = tokens_adjacent(u_g)
    do = tokens_adjacent(do)
    dv = torch.empty((B, C, T), dtype=v.dtype, device=v.device)

    # offsets i - j from LOW on that the filter weighs, and the blocks of tokens they join
    LOW = 2
    TAPS = min(u_w.shape[1], 38)
    NT = triton.cdiv(T, 256)
    FIRST, LAST = max(LOW // 256, 1 - NT), min((LOW + TAPS + 254) // 256, NT - 1)
    LAST = max(FIRST, LAST)
    f1, f2, twiddle = dft_tables(v.device, v.dtype)
    spectrum = spectra(u_w[:, :TAPS], LOW, FIRST, LAST, v.dtype)

    past_dfft[(triton.cdiv(B * NT, 2) * C,)](
        do,
        u_g,
        spectrum,
        f1,
        f2,
        twiddle,
        u_D,
        dv,
        *do.stride()[:2],
        *u_g.stride()[:2],
        *u_D.stride(),
        B,
        T,
        C,
        FIRST,
        LAST,
        N1=32,
        N2=16,
        NH=16,
        num_warps=4,
        num_stages=1,
    )

    # partial sums of the spectrum's gradient, for PPS pairs each: each element has one writer
    FIRST, LAST = min(FIRST, 0), max(LAST, 0)
    NP = triton.cdiv(NT * B, 2)
    S = max(1, min(NP, 528 // (C * (LAST - FIRST + 1))))
    PPS = triton.cdiv(NP, S)
    S = triton.cdiv(NP, PPS)
    shape = (S, C, LAST - FIRST + 1, 2, 32, 16)
    partial = torch.empty(shape, dtype=torch.float32, device=v.device)
    past_dspectrum[(C * (LAST - FIRST + 1), S)](
        v,
        do,
        u_g,
        f1,
        f2,
        twiddle,
        partial,
        *v.stride()[:2],
        *do.stride()[:2],
        *u_g.stride()[:2],
        B,
        T,
        C,
        FIRST,
        LAST,
        PPS,
        N1=32,
        N2=16,
        NH=16,
        num_warps=4,
        num_stages=1,
    )

    sums, start = tap_sums(partial), (FIRST - 1) * 256
    du_w = torch.zeros(u_w.shape, dtype=u_w.dtype, device=v.device)
    begin, end = max(LOW, start), min(LOW + TAPS, start + sums.shape[1])
    if begin < end:
        du_w[:, begin - LOW : end - LOW] = sums[:, begin - start : end - start]
    dskip = sums[:, -start]
    return (
        dv.transpose(1, 2),
        dskip.to(u_D.dtype),
        du_w,
    )
