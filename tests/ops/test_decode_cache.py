"""Decode over a cache: one call on the whole, prefills in pieces and single steps agree."""

from __future__ import annotations

import secrets

import pytest
import torch

from attnc.cli.facts import Facts
from attnc.codegen.planning.planner import plans
from attnc.dsl.toml_file import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import attend
from attnc.ops.shipped import shipped
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.draw import Shape, draw_inputs

DRAWN = loads(
    """
[narrow]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - slope[h]*(i - j)"
mask = "causal & window(6)"
sink = "z[h]"
params.slope = { shape = ["h"] }
params.z = { shape = ["h"] }

[sunk]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
sink = "z[h]"
params.z = { shape = ["h"] }

[reaching]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & (window(9) | prefix(400))"

[placed]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s + 0.02*j - 0.01*i*h + x[b,i,h] - x[b,j,h] + 0.1*y[b,j]"
mask = "causal & (window(6) | prefix(3))"
inputs.x = { shape = ["b", "t", "h"] }
inputs.y = { shape = ["b", "t"] }

[packed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[blind]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & ~causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[blind_term]
terms = [
  { feature_map = "softmax", mask = "causal & (i < j)", scale = 1.0 },
  { feature_map = "taylor(2)", mask = "i - j >= 3", scale = 1.0 },
]

[lookahead]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "window(4, 4)"

[kept]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & blocks(table, 16)"
inputs.table = { shape = ["b", "h", "i/16", "j/16"] }

[weighed]
feature_map = "softmax"
scale = "rsqrt(d)"
value = "dt[b,t,h]*v"
mask = "causal"
inputs.dt = { shape = ["b", "t", "h"] }

[by_head]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & window(w[h])"
params.w = { shape = ["h"] }

[hybrid]
params.mix = { shape = ["h"] }
terms = [
  { feature_map = "softmax", mask = "causal & window(5)", scale = "rsqrt(d)", factor = "sigmoid(mix[h])" },
  { feature_map = "taylor(2)", mask = "i - j >= 6", scale = "rsqrt(d)", factor = "1 + h" },
]

[mixed]
sink = "z[h]"
params.z = { shape = ["h"] }
params.kept = { shape = ["hkv"] }
inputs.g = { shape = ["b", "t", "h"] }
terms = [
  { feature_map = "elu(x) + 1", mask = "causal & (window(4) | prefix(3))", scale = 0.3, factor = "exp(kept[hkv])" },
  { feature_map = "softmax", mask = "causal", scale = "rsqrt(d)", score = "s - 0.01*h*(i - j) + g[b,j,h]", factor = 0.5 },
]

[windows]
terms = [
  { feature_map = "softmax", mask = "causal & window(3)", scale = 1.0, score = "s - 0.1*(i - j)" },
  { feature_map = "relu(x)**2", mask = "causal & window(6)", scale = 0.1 },
]

[forward]
terms = [
  { feature_map = "softmax", mask = "causal", scale = 1.0 },
  { feature_map = "taylor(2)", mask = "j > i", scale = 1.0 },
]

[placed_sum]
terms = [
  { feature_map = "taylor(2)", mask = "causal & window(3)", scale = 1.0 },
  { feature_map = "softmax", mask = "causal & window(3)", scale = 1.0, score = "s - 0.1*j" },
]
"""  # noqa: E501
)
VARIANTS = {**shipped(), **DRAWN}
REFUSED = {"lookahead", "by_head", "kept", "weighed", "blind"}
SHIPPED = {"flash", "flash_alibi", "flash_softcap", "flash_window"}
NAMES = sorted(SHIPPED | {n for n, v in DRAWN.items() if v.family == "softmax"} - REFUSED)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = 23


def drawn(name, dtype, batch=2, heads=(4, 2), tokens=TOKENS):
    generator = torch.Generator().manual_seed(secrets.randbits(31))
    shape = Shape(batch, tokens, tokens, *heads, 32, 40, strided=True)
    return draw_inputs(VARIANTS[name], shape, dtype, generator, torch.device("cpu"))


def cache_of(op, x, **options):
    """An empty cache for the sizes of x, its memory NaN."""
    state = op.init_state(
        x.q.shape[0], (x.q.shape[2], x.k.shape[2]), dim=(x.q.shape[3], x.v.shape[3]),
        dtype=x.q.dtype, device="cpu", **options,
    )  # fmt: skip
    state.keys.fill_(float("nan"))
    state.values.fill_(float("nan"))
    return state


def decoded(op, x, state, prefilled):
    """o and lse of prefills of the given lengths, then of steps."""
    outs, at = [], 0
    whole = {t.name: x.tensors[t.name] for t in (*op.variant.params, *op.variant.inputs)}
    for declared in (*op.variant.params, *op.variant.inputs):
        if "t" in declared.shape:
            # as long as the cache: what has no token yet is NaN
            old = whole[declared.name]
            sizes = [state.capacity if a == "t" else n
                     for a, n in zip(declared.shape, old.shape, strict=True)]  # fmt: skip
            whole[declared.name] = torch.full(sizes, float("nan"))
            whole[declared.name][:, : old.shape[1]] = old
    for length in (*prefilled, *(1 for _ in range(x.q.shape[1] - sum(prefilled)))):
        qkv = [t[:, at : at + length] for t in x.qkv]
        call = op.step if at >= sum(prefilled) else op.prefill
        out, lse, state = call(*qkv, state, return_lse=True, **whole)
        outs.append((out, lse))
        at += length
    return torch.cat([o for o, _ in outs], 1), torch.cat([lse for _, lse in outs], 2)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{"capacity": 40}, {"capacity": 600}, {"capacity": 40, "page_size": 8}],
    ids=["contiguous", "split", "paged"],
)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_references_however_the_tokens_came_in(name, options, dtype):
    held_to_the_reference(name, options, dtype, (4, 14))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("hybrid", {"capacity": 600}, "bf16"),
        ("hybrid", {"capacity": 40, "page_size": 8}, "fp32"),
        ("mixed", {"capacity": 40}, "bf16"),
        ("mixed", {"capacity": 600}, "fp32"),
    ],
    ids=str,
)
def test_terms_of_a_sum_meet_in_a_step_under_one_maximum(name, options, dtype):
    held_to_the_reference(name, options, dtype, (4, 14))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(
    ("name", "prefilled"),
    [*(("narrow", p) for p in [(), (3, 2), (16,), (5, 11)]), ("windows", (5, 6))],
    ids=str,
)
def test_a_ring_wraps_around_and_forgets_only_what_no_row_sees(name, prefilled):
    state = held_to_the_reference(name, {}, "fp32", prefilled)
    assert state.kind == "ring" and state.capacity == 7


def held_to_the_reference(name, options, dtype, prefilled, tokens=TOKENS):
    variant, op = VARIANTS[name], compile_op(VARIANTS[name])
    x = drawn(name, DTYPES[dtype], tokens=tokens)
    ref = attend(variant, *x.qkv, x.tensors, return_lse=True)
    pt = attend(
        variant, *x.qkv, x.tensors, dtype=torch.float32, rounding=DTYPES[dtype], return_lse=True
    )
    # the hardware's tanh leaves scores as exact as bf16, and so does a rounded feature
    rough = "softcap" in str(variant.score) or any(
        t.feature_map.phi is not None for t in variant.terms
    )
    rounded = pt.lse if rough and dtype == "bf16" else None
    state = cache_of(op, x, **options)
    out, lse = decoded(op, x, state, prefilled)
    for verdict in (check(out, ref.out, pt.out), check_lse(lse, ref.lse, rounded)):
        assert verdict.sound, str(verdict)
    assert state.lengths.tolist() == [tokens] * 2 and state.tokens == tokens
    return state


@pytest.mark.parametrize("capacity", [40, 600])
def test_a_row_that_no_key_is_shown_to_is_zeros(capacity):
    op, x = compile_op(VARIANTS["blind"]), drawn("blind", torch.float32)
    state = cache_of(op, x, capacity=capacity)
    out, lse = decoded(op, x, state, (20,))
    assert not out.any() and (lse == float("-inf")).all()


def test_a_term_that_no_key_is_shown_to_leaves_the_others_alone():
    held_to_the_reference("blind_term", {"capacity": 40}, "fp32", (20,))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", ["flash", "sunk", "reaching", "hybrid"])
def test_splits_of_a_long_cache_are_put_together(name):
    held_to_the_reference(name, {"capacity": 600}, "fp32", (320,), tokens=322)
    request = Facts(decode=True, shape="2,600", dim="32,40", heads="4,2").request(VARIANTS[name])
    assert plans(request)[0].splits > 1


def test_a_key_of_a_group_is_read_by_all_its_query_heads_in_one_program():
    op = compile_op(VARIANTS["flash"])
    x = drawn("flash", torch.float32, heads=(40, 2))
    state = cache_of(op, x, capacity=40)
    out, _ = decoded(op, x, state, (TOKENS - 1,))
    ref = op.reference(*x.qkv)
    assert (out - ref).norm() < 1e-5 * ref.norm()
