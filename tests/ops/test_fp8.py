"""8-bit tensors with a scale a head: against eager attention in fp64, and the texts of refusals."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import attnc
from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.operators import FORWARD
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.verify import verify

E4M3 = torch.float8_e4m3fn
SOFTMAX = [
    name
    for name, variant in attnc.shipped().items()
    if variant.family == "softmax" and variant.value is None
]
PLAIN = loads(
    """
[plain]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & window(40)"

[everything]
feature_map = "softmax"
scale = 0.3
score = "softcap(s - z[h]*(i - j) + u[b,j,h], 5)"
mask = "causal & (window(20) | prefix(n[b]))"
sink = "z[h]"
params.z = { shape = ["h"] }
inputs.u = { shape = ["b", "j", "h"] }
inputs.n = { shape = ["b"] }
"""
)


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes and scales that differ from head to head by up to a factor of 4."""
    scale = x.abs().amax((0, 1, 3)) / 448 * (1 + 3 * torch.rand(x.shape[2]))
    return (x / scale[:, None]).to(E4M3), scale


def drawn(tq: int, tk: int, hq: int, hkv: int, dim: int, value_dim: int):
    sizes = ((2, tq, hq, dim), (2, tk, hkv, dim), (2, tk, hkv, value_dim))
    q, k, v = (torch.randn(size) for size in sizes)
    (q, q_scale), (k, k_scale), (v, v_scale) = map(quantised, (q, k, v))
    return (q, k, v), {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}


def eager(qkv, scales, *, visible) -> torch.Tensor:
    """Softmax attention of what the bytes stand for, in fp64."""
    q, k, v = (
        x.double() * scale.double()[:, None]
        for x, scale in zip(qkv, (scales[f"{n}_scale"] for n in "qkv"), strict=True)
    )
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.nan_to_num(scores.softmax(-1))
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What bf16 keeps of fp64."""
    return x.bfloat16().double()


@pytest.mark.parametrize(
    ("tq", "tk", "hq", "hkv", "dim", "value_dim"),
    [
        (1, 1, 2, 2, 64, 64),
        (63, 63, 4, 2, 64, 64),
        (37, 130, 3, 1, 16, 48),
        (100, 37, 2, 2, 80, 64),
    ],
)
def test_a_windowed_row_is_eager_attention_of_what_the_bytes_stand_for(
    tq, tk, hq, hkv, dim, value_dim
):
    qkv, scales = drawn(tq, tk, hq, hkv, dim, value_dim)
    i, j = torch.arange(tq)[:, None] + tk - tq, torch.arange(tk)[None, :]
    visible = (j <= i) & (i - j <= 40)
    want = eager(qkv, scales, visible=visible)
    got = compile_op(PLAIN["plain"])(*qkv, **scales)
    assert got.dtype == torch.bfloat16
    # weights and the output keep 8 bits: 2**-8 of the largest value a row may mix
    largest = float((qkv[2].double() * scales["v_scale"].double()[:, None]).abs().max())
    assert float((got.double() - want).abs().max()) <= 2**-7 * largest
    assert float(want.abs().max()) > 2**-4 * largest


def test_a_negative_scale_of_the_score_is_that_of_the_opposite_queries():
    (q, k, v), scales = drawn(33, 33, 2, 1, 16, 32)
    facts = {"feature_map": "softmax", "mask": "causal & window(40)"}
    found = compile_op(attnc.Variant("away", scale=-0.25, **facts))(q, k, v, **scales)
    visible = torch.ones(33, 33, dtype=torch.bool).tril()
    want = eager((-q.float(), k, v), scales, visible=visible)
    assert float((found.double() - want).abs().max()) <= 2**-7 * float(want.abs().max())


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("name", SOFTMAX)
def test_every_shipped_softmax_variant_takes_bytes(name):
    report = verify(attnc.shipped()[name], dtypes=("e4m3",), shapes=None)
    assert report.passed, str(report)
    assert {row.what for row in report.rows} == {"online form", "lse"}


def test_masks_scores_and_sinks_join_in_one_kernel():
    report = verify(PLAIN["everything"], dtypes=("e4m3",))
    assert report.passed, str(report)


def test_an_lse_is_exact_where_sums_of_products_are():
    qkv, scales = drawn(63, 63, 2, 1, 64, 64)
    op = compile_op(PLAIN["plain"])
    _, lse = op(*qkv, return_lse=True, **scales)
    _, want = op.reference(*qkv, return_lse=True, **scales)
    assert check_lse(lse, want).passed


def test_a_factor_moved_from_q_to_k_changes_no_bit():
    qkv, scales = drawn(50, 70, 4, 2, 64, 64)
    op = compile_op(PLAIN["plain"])
    moved = {**scales, "q_scale": scales["q_scale"] * 4, "k_scale": scales["k_scale"] / 4}
    assert torch.equal(op(*qkv, **scales), op(*qkv, **moved))


def test_twice_the_scale_of_v_is_twice_the_output():
    qkv, scales = drawn(50, 70, 4, 2, 64, 64)
    op = compile_op(PLAIN["plain"])
    twice = {**scales, "v_scale": scales["v_scale"] * 2}
    assert torch.equal(op(*qkv, **scales) * 2, op(*qkv, **twice))


def test_v_may_lie_with_its_tokens_adjacent():
    qkv, scales = drawn(50, 70, 4, 2, 64, 64)
    q, k, v = qkv
    op = compile_op(PLAIN["plain"])
    turned = v.transpose(1, 3).contiguous().transpose(1, 3)
    assert turned.stride(1) == 1
    assert torch.equal(op(q, k, v, **scales), op(q, k, turned, **scales))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_an_output_has_the_type_that_is_asked_for(dtype):
    qkv, scales = drawn(63, 63, 2, 1, 64, 64)
    op = compile_op(PLAIN["plain"])
    got = op(*qkv, out_dtype=dtype, **scales)
    assert got.dtype == dtype
    want = op.reference(*qkv, **scales)
    # weights are rounded to bf16 whatever the output is
    assert check(got.bfloat16(), want, rounded(want) + 1e-3).passed


def test_the_rounding_of_the_output_alone_tells_fp32_from_bf16():
    qkv, scales = drawn(63, 63, 2, 1, 64, 64)
    op = compile_op(PLAIN["plain"])
    wide = op(*qkv, out_dtype=torch.float32, **scales)
    assert torch.equal(wide.bfloat16(), op(*qkv, **scales))
    assert not torch.equal(wide, wide.bfloat16().float())


def test_packed_sequences_are_calls_of_their_own():
    qkv, scales = drawn(90, 90, 4, 2, 64, 64)
    q, k, v = (x[:1] for x in qkv)
    op = compile_op(PLAIN["plain"])
    starts = torch.tensor([0, 33, 33, 90], dtype=torch.int32)
    got = op(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, **scales)
    for part in (slice(0, 33), slice(33, 90)):
        assert torch.equal(got[:, part], op(q[:, part], k[:, part], v[:, part], **scales))


def test_the_operator_says_its_output_is_bf16_before_it_runs():
    op = compile_op(PLAIN["plain"]).over_scales(torch.empty(0, dtype=E4M3))
    with FakeTensorMode():
        q, k = torch.empty(1, 5, 2, 64, dtype=E4M3), torch.empty(1, 5, 1, 64, dtype=E4M3)
        made = FORWARD(op.key, q, k, k, [torch.empty(1), torch.empty(2), torch.empty(1)], None, "",
                       "fp32")  # fmt: skip
    assert [tensor.dtype for tensor in made] == [torch.bfloat16, torch.float32]


def test_a_compiled_call_is_whole_and_gives_what_an_eager_one_does():
    qkv, scales = drawn(20, 20, 2, 1, 64, 64)
    op = compile_op(PLAIN["plain"])

    def twice(q, k, v, scales):
        return op(q, k, v, out_dtype=torch.float16, **scales) * 2

    got = torch.compile(twice, fullgraph=True, backend="eager")(*qkv, scales)
    assert torch.equal(got, twice(*qkv, scales))


def test_an_op_over_scales_may_be_asked_for_a_type_again():
    qkv, scales = drawn(20, 20, 2, 1, 64, 64)
    op = compile_op(PLAIN["plain"]).over_scales(qkv[0])
    assert torch.equal(op(*qkv, out_dtype=torch.bfloat16, **scales), op(*qkv, **scales))
    assert op(*qkv, out_dtype=torch.float16, **scales).dtype == torch.float16
