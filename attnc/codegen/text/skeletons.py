"""The skeleton of each kernel: the template that prints it, and how its loops begin."""

from __future__ import annotations

from attnc.codegen.convolution.inner_passes import INNER_PASSES
from attnc.codegen.convolution.outer_passes import OUTER_PASSES
from attnc.codegen.kernels.gradient.walk import WALKS

# the template of a kernel, where it has not the kernel's name
TEMPLATES = {
    "online": "attend",
    "parallel": "attend",
    "carry": "fold",
    "dstate": "fold",
    "dcarry": "fold",
    "dquery": "dchunk",
    "dkey": "dchunk",
    "dvalue": "dchunk",
    **dict.fromkeys(WALKS, "walk"),
    "dpairs": "pairs",
    "key_blocks": "lists",
    "row_blocks": "lists",
    "dtoeplitz": "toeplitz",
    "dpostgate": "toeplitz",
    "dfft": "fft",
    "dgate": "fft",
    "dbutterfly": "butterfly",
    "butterfly_dgate": "butterfly",
    "butterfly_dspectrum": "factor_sums",
    "douter": "factor_sums",
    **dict.fromkeys(OUTER_PASSES, "outer_pass"),
    **dict.fromkeys(INNER_PASSES, "inner_pass"),
    "dinner": "factor_sums",
}
# what a step begins with, as far as its statements read it
STEP_LINES = {
    "attend": ("o_s = i_s + r_s", "m_s = o_s < TK"),
    "state": ("o_t = i_c * BC + r_c", "m_t = o_t < T"),
    "output": ("o_t = i_c * BC + r_c", "m_t = o_t < T"),
    "sum_output": ("o_s = i_s + r_s", "m_s = o_s < TK"),
    "gates": ("o_t = i_c * BC + tl.arange(0, BC)", "m_t = o_t < T"),
    "channel_gates": ("o_t = i_c * BC + tl.arange(0, BC)", "m_t = o_t < T"),
    "fold": ("o_t = i_c * BC + r_c", "m_t = o_t < T"),
    "dchannel_gates": ("o_t = i_c * BC + tl.arange(0, BC)", "m_t = o_t < TK"),
    "dgates": ("o_t = i_c * BC + tl.arange(0, BC)", "m_t = o_t < TK"),
    "lists": ("o_n = i_n + tl.arange(0, BN)", "m_n = o_n < NB"),
    "recurrent": ("i_q = i_hs * (HQ // HS) + i_g",),
    "decode": ("o_s = i_s + r_s", "m_s = o_s < TK"),
    "combine": (),
    "scan": (),
    "dscan": (),
    "dchunk": (),
    "walk": ("o_t = i_c * BC + r_c", "m_t = o_t < T"),
    "dq": ("o_s = i_s + r_s", "m_s = o_s < TK"),
    "dkv": ("o_t = i_t + r_t", "m_t = o_t < TQ", "b_i = o_t + (TK - TQ)"),
}
# the loop over steps, by kernel or by template
HEADERS = {
    "attend": "for i_s in range({start}, {stop}, BS):",
    "decode": "for i_s in range({start}, {stop}, BS):",
    "sum_output": "for i_s in range({start}, {stop}, BS):",
    "dq": "for i_s in range({start}, {stop}, BS):",
    "dkv": "for i_t in range({start}, {stop}, BT):",
    "lists": "for i_n in range({start}, {stop}, BN):",
    "scan": "for i_n in range({stop}):",
    "dscan": "for i_n in range({start}, {stop}, -1):",
    "dstate": "for i_c in range({start}, {stop}, -1):",
    "dcarry": "for i_c in range({start}, {stop}, -1):",
    "dchannel_gates": "for i_c in range({start}, {stop}, -1):",
    "dgates": "for i_c in range({start}, {stop}, -1):",
    "recurrent": "for i_g in range({stop}):",
    "dquery": "for i_g in range({stop}):",
    "dkey": "for i_g in range({stop}):",
    "dvalue": "for i_g in range({stop}):",
    **dict.fromkeys(WALKS[1:], "for i_c in range({start}, {stop}, -1):"),
    "toeplitz": "for i_m in range({start}, {stop}):",
    "pairs": "for i_l in range({start}, {stop}):",
    "dpairs": "for i_l in range({start}, {stop}):",
    "dtaps": "for i_k in range({start}, {stop}, BK):",
    "fft": "for i_m in range({start}, {stop}):",
    "filter_step": "for i_d in range({start}, {stop}, BD):",
    "dspectrum": "for i_p in range({start}, {stop}):",
    "outer_pass": "for i_r in range({start}, {stop}):",
    "inner_pass": "for i_p in range({start}, {stop}):",
    "factor_sums": "for i_r in range({start}, {stop}):",
}
