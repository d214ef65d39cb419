"""Sums of terms by chunks: a state carries the far term, pairs near the diagonal are the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnc.codegen.plan import Workload
from attnc.codegen.planning.form_choice import choose_form, chunk_flops
from attnc.codegen.planning.planner import plans
from attnc.codegen.planning.work import pair_flops
from attnc.dsl import loads
from attnc.errors import AttncError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.ops.test_terms import DECLARED, by_hand

# far terms of both kinds of features; near ones that are windows, and ones that are not
TEXT = """
[behind]
sink = "z[h]"
params.z = { shape = ["h"], grad = true }
inputs.g = { shape = ["b", "t", "h"] }
terms = [
  { feature_map = "elu(x) + 1", mask = "i - j >= 37", scale = 0.3, factor = 0.5 },
  { feature_map = "softmax", mask = "causal & window(36)", scale = "rsqrt(d)", score = "s - 0.01*h*(i - j) + g[b,j,h] - g[b,i,h] + 0.001*i" },
]

[twice]
terms = [
  { feature_map = "(1 + s)**2", mask = "causal", scale = 0.2 },
  { feature_map = "softmax", mask = "window(9, 9) | (j < 3)", scale = "rsqrt(d)" },
  { feature_map = "s**2 + 0.1", mask = "i - j >= 3", scale = 0.2, factor = 0.3 },
]

[ahead]
terms = [
  { feature_map = "elu(x) + 1", mask = "i - j >= -5", scale = 0.3 },
  { feature_map = "softmax", mask = "i - j == 2", scale = 1.0 },
]

[no_features]
terms = [
  { feature_map = "softmax", mask = "causal & window(9)", scale = 1.0 },
  { feature_map = "taylor(2)", mask = "causal & window(99)", scale = 1.0 },
]

[made]
value = "v*v + w[c] + g[b,t,h]"
params.w = { shape = ["c"] }
inputs.g = { shape = ["b", "t", "h"] }
terms = [
  { feature_map = "softmax", mask = "causal & window(9)", scale = "rsqrt(d)" },
  { feature_map = "taylor(2)", mask = "i - j >= 10", scale = "rsqrt(d)" },
]
"""  # noqa: E501


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(TEXT).items()}


@pytest.fixture(scope="module")
def windowed() -> Op:
    return compile_op(loads(DECLARED)["windowed"])


def test_rows_by_chunks_are_the_quotient_over_all_keys(windowed):
    """130 tokens are two segments of chunks of 16, the second from a state that `scan` made."""
    q, k, v = (torch.randn(1, 130, 1, 16) for _ in range(3))
    mix = torch.randn(1)
    out, lse = windowed(q, k, v, mix=mix, form="chunked", return_lse=True)
    expected = by_hand(*(x[0].double().numpy() for x in (q, k, v)), mix.numpy())
    for found, wanted in ((out, expected[0]), (lse, expected[1])):
        torch.testing.assert_close(found[0].double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize(
    ("name", "tokens", "dtype"),
    [
        ("behind", 150, "fp32"),
        ("behind", 150, "bf16"),
        ("twice", 135, "fp32"),
        ("twice", 75, "fp16"),
        ("ahead", 140, "fp32"),
        ("made", 135, "fp32"),
    ],
)
def test_both_forms_of_a_sum_pass_verify_and_agree(name, tokens, dtype, ops):
    shapes = (Shape(1, tokens, tokens, 2, 1, 16, 24, strided=True),)
    variant = ops[name].variant
    report = verify(variant, dtypes=(dtype,), shapes=shapes, seed=5, gradients=False)
    assert report.passed, str(report)
    of_calls = [row.what for row in report.rows if "decode" not in row.what]
    assert of_calls == [
        "online form", "lse", "chunked form", "lse", "chunked against online",
    ]  # fmt: skip


def test_gradients_of_a_chunked_call_are_those_of_the_formula(ops):
    """By chunks too, from the lse that the state left."""
    shapes = (Shape(1, 70, 70, 2, 1, 16, 16),)
    report = verify(ops["behind"].variant, dtypes=("fp32",), shapes=shapes, seed=5)
    assert report.passed, str(report)
    assert {"d q, chunked form", "d z, chunked form"} <= {row.what for row in report.rows}


@pytest.mark.parametrize("size", [-400.0, 400.0])
def test_scores_of_any_size_neither_overflow_nor_vanish_by_chunks(size, windowed):
    """The largest weight is the window's, then the state's."""
    q = torch.ones(1, 70, 1, 16)
    k = torch.full((1, 70, 1, 16), size / 4) + 0.1 * torch.randn(1, 70, 1, 16)
    v, mix = torch.randn(1, 70, 1, 16), torch.zeros(1)
    out, lse = windowed(q, k, v, mix=mix, form="chunked", return_lse=True)
    ref, ref_lse = windowed.reference(q, k, v, mix=mix, return_lse=True)
    torch.testing.assert_close(out.double(), ref, rtol=0, atol=5e-4)
    torch.testing.assert_close(lse.double(), ref_lse, rtol=0, atol=1e-3)


def test_a_key_reaches_no_chunk_of_rows_before_its_own(windowed):
    """NaN in a value shows in every row that sees it, and in no chunk of 16 before those."""
    q, k, v = (torch.randn(1, 100, 1, 16) for _ in range(3))
    v[:, 40] = float("nan")
    out = windowed(q, k, v, mix=torch.zeros(1), form="chunked")
    seen = out.isnan().all(-1)[0, :, 0]
    assert not seen[:32].any() and seen[40:].all()


def test_packed_sequences_by_chunks_are_calls_of_their_own(ops):
    """In as many segments as each alone, the same bits; one is empty, one a few tokens."""
    op, starts = ops["behind"], torch.tensor([0, 131, 131, 140, 190]).int()
    q, k, v = (torch.randn(1, 190, n, 16) for n in (2, 1, 1))
    g, z = torch.randn(1, 190, 2), torch.randn(2)
    call = {"form": "chunked", "return_lse": True, "z": z}
    out, lse = op(q, k, v, g=g, cu_seqlens_q=starts, cu_seqlens_k=starts, **call)
    parts = [slice(a, b) for a, b in ((0, 131), (131, 140), (140, 190))]
    alone = [op(q[:, p], k[:, p], v[:, p], g=g[:, p], **call) for p in parts]
    assert torch.equal(out, torch.cat([o for o, _ in alone], 1))
    assert torch.equal(lse, torch.cat([row for _, row in alone], 2))
    assert out.isfinite().all() and out.abs().max() > 0.1


def request_of(op: Op, tokens: int, dims: tuple[int, int] = (16, 64), **facts: object):
    work = Workload(2, tokens, tokens, 4, 2)
    return replace(op.request(dims, "bf16", None, False, workload=work), **facts)


def chosen(op: Op, tokens: int, *dims: tuple[int, int], **facts: object) -> tuple[str, str]:
    return choose_form(request_of(op, tokens, *dims, **facts), op._algebra)


def test_the_form_of_a_sum_is_the_one_that_multiplies_less(windowed):
    assert chosen(windowed, 1024) == (
        "online",
        "all pairs take 0.7 GFLOP, a state and the other pairs 0.6, and no card has timed the "
        "latter",
    )
    form, why = chosen(windowed, 16384)
    assert form == "chunked"
    assert why == (
        "all pairs take 169.1 GFLOP, a state and the other pairs 10.1: a state carries term 2, of "
        "keys 20 tokens back or more; the other terms and its border go by pairs"
    )


def test_what_has_no_chunks_is_walked_by_pairs(windowed, ops):
    long = request_of(windowed, 16384)
    work = replace(long.workload, tq=9)
    assert choose_form(replace(long, workload=work), windowed._algebra)[0] == "online"
    assert choose_form(replace(long, launcher="packaged"), windowed._algebra)[0] == "online"
    packed = windowed.over_sequences()
    asked = replace(long, variant=packed.variant)
    assert choose_form(asked, packed._algebra) == (
        "online", "where sequences start is data, and so is what their pairs take",
    )  # fmt: skip
    too_large = chosen(windowed, 16384, (64, 64))
    assert too_large[0] == "online"
    assert too_large[1].startswith("the state is too large for any tile: 2,145 features by 64")


def test_a_calls_own_length_chooses_the_form_of_a_sum(windowed):
    def form_of(tokens: int) -> str:
        q, k, v = (torch.empty(1, tokens, 1, 16) for _ in range(3))
        find = windowed.built_plans.find
        return find(q, k, v, [torch.zeros(1)], None, "fp32", stateful=False).plan.form

    assert [form_of(tokens) for tokens in (60, 8192, 300)] == ["online", "chunked", "online"]


@pytest.mark.parametrize("name", ["behind", "twice"])
def test_products_that_choose_a_form_are_those_that_its_passes_make(name, ops):
    request = request_of(ops[name], 4096)
    online, *_ = plans(replace(request, form="online"))
    assert online.passes[-1].cost.flops == pytest.approx(pair_flops(request), rel=1e-6)
    chunked = (plan.passes[-1] for plan in plans(replace(request, form="chunked")))
    rows = next(step for step in chunked if step.tile["BC"] == 64)
    counted = chunk_flops(request, ops[name]._algebra)
    assert rows.cost.flops == pytest.approx(counted, rel=0.02)


def test_chunks_are_short_where_a_state_of_monomials_leaves_no_registers(ops):
    """By the compiler's figures for cuda:90, 64 rows of 153 features spill 1,164 B a thread.

    32 rows spill 28 B; 64 channels leave room for 64 rows.
    """
    example = compile_op(shipped()["window_taylor"])
    chunks = [
        op.plan(dim=dims, form="chunked").passes[-1].tile["BC"]
        for op, dims in ((example, (16, 64)), (ops["behind"], (64, 64)))
    ]
    assert chunks == [32, 64]


def test_a_key_lags_as_many_chunks_as_the_far_mask_reaches_back(windowed, ops):
    """20 tokens are one chunk of 64; -5 and 0 are none."""
    lags = {
        name: plans(request_of(op, 4096, form="chunked"))[0].passes[-1].tile["LAG"]
        for name, op in {"windowed": windowed, **ops}.items()
        if op._algebra.legal("chunked").legal
    }
    assert lags == {"windowed": 1, "behind": 1, "twice": 0, "ahead": 0, "made": 1}


def refused(name: str, windowed: Op, ops: dict[str, Op]) -> str:
    q, k, v = (torch.randn(1, 9, 2, 16) for _ in range(3))
    starts = torch.tensor([0, 5, 9]).int()
    wide = [torch.randn(1, 9, 1, 64) for _ in range(3)]
    far = {"mix": torch.zeros(2), "form": "chunked"}
    calls = {
        "no features": lambda: ops["no_features"](q, k, v, form="chunked"),
        "other lengths": lambda: windowed(q[:, :4], k, v, **far),
        "other sequences": lambda: windowed(
            q, k, v, cu_seqlens_q=starts, cu_seqlens_k=torch.tensor([0, 4, 9]).int(), **far
        ),
        "a large state": lambda: windowed(*wide, mix=torch.zeros(1), form="chunked"),
    }
    with pytest.raises(AttncError) as raised:
        calls[name]()
    return str(raised.value)


TEXTS = """
== no features
error[A200]: 'no_features' has no chunked form
  note: no term is a polynomial in s of all keys from some distance on, i - j >= N, and no other folds into a state
  hint: its forms with kernels are: online
== other lengths
error[A300]: the chunked form needs TQ = TK, not 4 and 9
  hint: the online form takes any lengths; it is chosen when form is left out
== other sequences
error[A300]: cu_seqlens_q and cu_seqlens_k differ, and a fold over tokens takes each with its query
  hint: the online form takes any lengths; it is chosen when form is left out
== a large state
error[A200]: no tile of 'windowed' at K=64, V=64, fp32 holds its state
  note: 2,145 features by 64 columns of v in fp32 take 549,120 B, a state may take 196,608 of the 262,144 B of registers of a program
  hint: the online form keeps no state; or use a smaller K or a lower order
"""  # noqa: E501
EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sum_without_chunks_says_why(name, windowed, ops):
    assert refused(name, windowed, ops) == EXPECTED[name]
