"""Decode over a cache: one call on the whole, prefills in pieces and single steps agree."""

from __future__ import annotations

import secrets

import pytest
import torch

from attnc.cli.facts import Facts
from attnc.codegen.planning.planner import plans
from attnc.dsl.toml_file import loads
from attnc.errors import AttncError
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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{"capacity": 40}, {"capacity": 600}, {"capacity": 40, "page_size": 8}],
    ids=["contiguous", "split", "paged"],
)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_references_however_the_tokens_came_in(name, options, dtype):
    held_to_the_reference(name, options, dtype, (4, 14))


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


@pytest.mark.parametrize("name", ["flash", "sunk", "reaching", "hybrid"])
def test_splits_of_a_long_cache_are_put_together(name):
    held_to_the_reference(name, {"capacity": 600}, "fp32", (320,), tokens=322)
    request = Facts(decode=True, shape="2,600", dim="32,40", heads="4,2").request(VARIANTS[name])
    assert plans(request)[0].splits > 1


def test_sequences_of_different_lengths_take_a_step_together():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=40)
    op.prefill(*(t[:, :9] for t in x.qkv), state)
    # the second sequence starts over
    state.lengths[1] = 4
    last = [t[:, 20:21] for t in x.qkv]
    out, _ = op.step(*last, state)
    for b, length in enumerate((9, 4)):
        keys, values = (
            torch.cat([t[b : b + 1, :length], t[b : b + 1, 20:21]], 1) for t in x.qkv[1:]
        )
        ref = op.reference(last[0][b : b + 1], keys, values)
        assert (out[b : b + 1] - ref).norm() < 1e-5 * ref.norm()
    assert state.lengths.tolist() == [10, 5]
    with pytest.raises(AttncError, match="have lengths from 5 to 10"):
        op.prefill(*(t[:, :2] for t in x.qkv), state)


def test_pages_in_any_order_hold_the_same_tokens():
    op, x = compile_op(VARIANTS["flash_alibi"]), drawn("flash_alibi", torch.float32)
    table = torch.tensor([[7, 2, 5], [0, 6, 3]], dtype=torch.int32)
    outs = []
    for options in ({"pages": 9, "block_table": table}, {}):
        state = cache_of(op, x, capacity=24, page_size=8, **options)
        outs.append(decoded(op, x, state, (10,))[0])
    assert torch.equal(*outs)
    assert state.keys.shape == (6, 8, 2, 32)


def test_a_step_past_the_capacity_that_only_a_graph_can_take_gives_nan_and_writes_nothing():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=TOKENS)
    op.prefill(*x.qkv, state)
    kept = state.keys.clone()
    state.tokens = 0  # a replayed graph does not ask the host
    out, _ = op.step(*(t[:, :1] for t in x.qkv), state)
    assert out.isnan().all()
    assert torch.equal(state.keys, kept)


def test_a_key_of_a_group_is_read_by_all_its_query_heads_in_one_program():
    op = compile_op(VARIANTS["flash"])
    x = drawn("flash", torch.float32, heads=(40, 2))
    state = cache_of(op, x, capacity=40)
    out, _ = decoded(op, x, state, (TOKENS - 1,))
    ref = op.reference(*x.qkv)
    assert (out - ref).norm() < 1e-5 * ref.norm()


def test_reset_and_clone_leave_the_other_alone():
    op, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = cache_of(op, x, capacity=40)
    op.prefill(*x.qkv, state)
    other = state.clone()
    state.reset()
    assert (state.tokens, state.lengths.tolist()) == (0, [0, 0])
    assert (other.tokens, other.lengths.tolist()) == (TOKENS, [TOKENS] * 2)
    assert other.nbytes == 2 * 40 * 2 * (32 + 40) * 4
    assert other.keys.stride() == state.keys.stride()


def refused(name):
    flash, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = flash.init_state(2, (4, 2), dim=(32, 40), dtype=torch.float32, device="cpu", capacity=4)
    one, five = ([t[:, :n] for t in x.qkv] for n in (1, 5))
    full = flash.init_state(2, (4, 2), dim=(32, 40), dtype=torch.float32, device="cpu", capacity=1)
    placed, linear = compile_op(VARIANTS["placed"]), compile_op(VARIANTS["linear"])
    sizes = {"dim": (32, 40), "dtype": torch.float32, "device": "cpu"}
    ring = compile_op(VARIANTS["narrow"]).init_state(2, (4, 2), **sizes)
    table = torch.tensor([[0], [2]], dtype=torch.int32)

    def twice():
        flash.step(*one, full)
        flash.step(*one, full)

    calls = {
        "no capacity": lambda: flash.init_state(2, 4, **sizes),
        "a ring of another": lambda: flash.prefill(*one, ring),
        "too few pages": lambda: flash.init_state(2, 4, capacity=20, page_size=8, pages=5, **sizes),
        "no such page": lambda: flash.init_state(
            2, 4, capacity=8, page_size=8, pages=2, block_table=table, **sizes
        ),
        "a table of another type": lambda: flash.init_state(
            2, 4, capacity=8, page_size=8, block_table=table.long(), **sizes
        ),
        "a table and no pages": lambda: flash.init_state(
            2, 4, capacity=8, block_table=table, **sizes
        ),
        "no ring": lambda: placed.init_state(2, 4, **sizes),
        "pages of nothing": lambda: flash.init_state(2, 4, page_size=16, **sizes),
        "no such mask": lambda: compile_op(VARIANTS["lookahead"]).init_state(2, 4, **sizes),
        "blocks": lambda: compile_op(VARIANTS["kept"]).init_state(2, 4, **sizes),
        "a value": lambda: compile_op(VARIANTS["weighed"]).init_state(2, 4, **sizes),
        "a window a head": lambda: compile_op(VARIANTS["by_head"]).init_state(2, 4, **sizes),
        "a term ahead": lambda: compile_op(VARIANTS["forward"]).init_state(2, 4, **sizes),
        "a far term": lambda: compile_op(VARIANTS["mixed"]).init_state(2, 4, **sizes),
        "a placed term": lambda: compile_op(VARIANTS["placed_sum"]).init_state(2, 4, **sizes),
        "too many": lambda: flash.prefill(*five, state),
        "full": twice,
        "no state": lambda: flash.prefill(*one),
        "another head": lambda: flash.step(one[0], *(t[:, :, :1] for t in one[1:]), state),
        "another dtype": lambda: flash.step(*(t.half() for t in one), state),
        "capacity of a state": lambda: linear.init_state(2, 4, capacity=9, **sizes),
        "more keys": lambda: flash.prefill(one[0], *five[1:], state),
    }
    with pytest.raises(AttncError) as raised:
        calls[name]()
    return str(raised.value)


TEXTS = """
== no capacity
error[A300]: a cache of 'flash' needs a capacity
  note: its mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== no ring
error[A300]: a cache of 'placed' needs a capacity
  note: its mask depends on more than the distance of query and key
  hint: pass capacity=..., the most tokens that a sequence may have
== pages of nothing
error[A300]: a cache of 'flash' needs a capacity
  note: its mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== a ring of another
error[A300]: the cache is a ring of 7 keys, and 'flash' sees all keys
  note: its mask is no window: a row sees all keys before it
  hint: a state goes on with the op that made it
== too few pages
error[A300]: 5 pages of 8 tokens hold no 2 sequences of 20
  hint: pass pages=6 or more, or a block_table
== no such page
error[A300]: block_table names page 2, and there are 2
== a table of another type
error[A300]: block_table is torch.int64 [2, 1], expected torch.int32 [2, 1]
  note: a row a sequence, a page for each 8 of 8 tokens
== a table and no pages
error[A300]: the cache has a block_table and no page_size
  hint: page_size=16 makes a cache of pages of 16 tokens
== no such mask
error[A200]: 'lookahead' has no decode
  note: its mask shows a query keys that come after it, and a step knows none of them
  hint: and the mask with causal, or call the op on the whole sequence
== blocks
error[A200]: 'kept' has no decode
  note: its mask keeps blocks by a table, which no step walks yet
  hint: call the op with one query and all keys: TQ = 1 ends at the last key
== a value
error[A200]: 'weighed' has no decode
  note: its value is an expression, and a cache keeps v as it comes
  hint: declare no value, and hand the step what it says
== a window a head
error[A200]: 'by_head' has no decode
  note: its mask is bounded by a number a query head, and heads share a walk
  hint: bound the mask by a number, or by one a batch entry
== a term ahead
error[A200]: 'forward' has no decode
  note: its mask shows a query keys that come after it, and a step knows none of them
  hint: and the mask with causal, or call the op on the whole sequence
== a far term
error[A300]: a cache of 'mixed' needs a capacity
  note: its mask depends on more than the distance of query and key
  note: no term is a polynomial in s of all keys from some distance on, i - j >= N, and no other folds into a state
  hint: pass capacity=..., the most tokens that a sequence may have
== a placed term
error[A300]: a cache of 'placed_sum' needs a capacity
  note: its score depends on more than the distance of query and key
  note: no term is a polynomial in s of all keys from some distance on, i - j >= N, and no other folds into a state
  hint: pass capacity=..., the most tokens that a sequence may have
== too many
error[A300]: the cache is full: it holds 0 tokens of 4, and 5 more come
  hint: init_state(capacity=...) makes a larger one
== full
error[A300]: the cache is full: it holds 1 tokens of 1, and 1 more comes
  hint: init_state(capacity=...) makes a larger one
== no state
error[A300]: the state of 'flash' is a NoneType, not a KVCache
  hint: init_state makes one
== another head
error[A300]: the cache is for B, HKV, K, V = [2, 2, 32, 40], this call asks for [2, 1, 32, 40]
== another dtype
error[A300]: the cache is torch.float32 on cpu, this call is torch.float16 on cpu
== capacity of a state
error[A300]: the state of 'linear' has no capacity: its size is fixed
  hint: leave capacity, page_size, pages and block_table out
== more keys
error[A300]: a prefill takes as many queries as keys, not 1 and 5
"""  # noqa: E501
EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_does_not_fit_is_refused_and_the_text_says_why(name):
    assert refused(name) == EXPECTED[name]
