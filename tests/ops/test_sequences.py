"""Packed sequences: each is a call of its own, empty ones too, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import attnc
from attnc.dsl import loads
from attnc.errors import InputError, PlanError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify
from tests.drawn_calls import shapes
from tests.ops.test_gradients import hold_exactly
from tests.ops.test_property import SETTINGS
from tests.ops.test_verify import sabotage
from tests.packed import starts
from tests.strategies import channel_declarations, declarations

DECLARED = """
[plain]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"

[two_sided]
feature_map = "softmax"
scale = 0.3

[rich]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - z[h]*(i - j) + u[b,i,h] - u[b,j,h] + y[b,i] - w[b,j,h] + m*table[b,h]"
mask = "causal & (window(20) | prefix(n[b]))"
sink = "z[h]"
params.z = { shape = ["h"], grad = true }
params.m = { shape = [], grad = true }
inputs.u = { shape = ["b", "t", "h"], grad = true }
inputs.w = { shape = ["b", "j", "h"], grad = true }
inputs.y = { shape = ["b", "i"], grad = true }
inputs.table = { shape = ["b", "h"] }
inputs.n = { shape = ["b"] }

[mapped]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal | (i - j >= -3)"
normalize = "sum"

[decayed]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal"
normalize = "sum"
log_decay = "-slope[h]"
params.slope = { shape = ["h"], grad = true }

[gated]
feature_map = "identity"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
log_decay = "-exp(a[h])*softplus(g[b,t,h])"
params.a = { shape = ["h"], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

[valued]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
value = "dt[b,t,h]*v + e[b,t,c]"
inputs.dt = { shape = ["b", "t", "h"], grad = true }
inputs.e = { shape = ["b", "t", "c"], grad = true }

[shared]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal & window(20)"
normalize = "none"
log_decay = "-g[b,t,hkv]**2"
inputs.g = { shape = ["b", "t", "hkv"], grad = true }
"""
DRAWN = st.one_of(
    declarations(grad=True),
    declarations("state", causal=True, grad=True),
    channel_declarations(causal=True, grad=True),
)
LENGTHS = (5, 0, 130, 64, 1, 0, 33, 128)


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(("tq", "tk", "hkv"), [(200, 200, 2), (90, 210, 4), (170, 60, 1)])
def test_gradients_are_those_of_each_sequence(name, tq, tk, hkv, ops):
    hold_exactly(ops[name].over_sequences(), Shape(1, tq, tk, 4, hkv, 16, 32, sequences=5))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", ["plain", "decayed", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sequences_are_bit_for_bit_what_they_are_alone(name, dtype, ops):
    """The plan is the same, and so is where a sequence's tiles begin."""
    op, tokens = ops[name], sum(LENGTHS)
    q, k, v, do = (torch.randn(1, tokens, 2, 16, dtype=dtype) for _ in range(4))
    tensors = {"slope": torch.tensor([0.1, 0.3])} if name == "decayed" else {}
    if name == "gated":
        tensors = {"a": torch.tensor([0.1, -0.3]), "g": torch.randn(1, tokens, 2)}
    cu = starts(LENGTHS)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    form = op.over_sequences().forms()[0]
    whole = op(*leaves, cu_seqlens_q=cu, cu_seqlens_k=cu, form=form, **tensors)
    gradients = torch.autograd.grad(whole, leaves, do)
    for start, stop in pairwise(cu.tolist()):
        if start == stop:
            continue
        part = [x[:, start:stop].detach().requires_grad_() for x in (q, k, v)]
        mine = {n: x[:, start:stop] if n == "g" else x for n, x in tensors.items()}
        alone = op(*part, form=form, **mine)
        assert torch.equal(whole[:, start:stop], alone)
        for packed, single in zip(
            gradients, torch.autograd.grad(alone, part, do[:, start:stop]), strict=True
        ):
            assert torch.equal(packed[:, start:stop], single)


def test_lengths_of_queries_and_keys_differ_and_each_is_aligned_to_its_last_key(ops):
    rows, keys = (3, 40, 0, 7, 9), (70, 12, 5, 0, 9)
    q = torch.randn(1, sum(rows), 4, 16)
    k, v = (torch.randn(1, sum(keys), 2, 16) for _ in range(2))
    cu = {"cu_seqlens_q": starts(rows), "cu_seqlens_k": starts(keys)}
    out, lse = ops["plain"](q, k, v, **cu, return_lse=True)
    ref, ref_lse = ops["plain"].reference(q, k, v, **cu, return_lse=True)
    torch.testing.assert_close(out, ref.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, ref_lse.float(), rtol=1e-5, atol=1e-5)
    # forty queries of twelve keys: the first stand before token 0; seven see no key at all
    assert (out[:, 3:31] == 0).all() and (out[:, 43:50] == 0).all()
    assert (lse[..., 43:50] == float("-inf")).all()


def test_a_sequence_without_keys_sees_its_sink_alone():
    op = compile_op(
        loads("""
[sunk]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
sink = "z[h]"
params.z = { shape = ["h"], grad = true }
""")["sunk"]
    )
    q, k, v = (torch.randn(1, n, 2, 16) for n in (5, 3, 3))
    z = torch.tensor([0.7, -2.0], requires_grad=True)
    cu = {"cu_seqlens_q": starts((2, 3)), "cu_seqlens_k": starts((0, 3))}
    for call in (op, op.reference):
        out, lse = call(q, k, v, z=z, **cu, return_lse=True)
        assert (out[:, :2] == 0).all()
        torch.testing.assert_close(lse[0, :, :2], z[:, None].expand(2, 2).to(lse.dtype))
        (gradient,) = torch.autograd.grad(lse[..., :2].sum(), z)
        torch.testing.assert_close(gradient, torch.tensor([2.0, 2.0]))


@pytest.mark.rest
def test_verify_packs_sequences_and_an_unlike_kernel_fails(ops, monkeypatch):
    shapes = [Shape(1, 40, 40, 2, 1, 16, 16, sequences=5)]
    variant = ops["gated"].variant
    report = verify(variant, shapes=shapes, dtypes=["fp32"])
    assert report.passed, str(report)
    assert {row.what for row in report.rows} >= {
        "parallel form", "d q, parallel form", "chunked against parallel", "d q, chunked form",
        "recurrent form", "state returned", "d initial_state, chunked form with a state given",
    }  # fmt: skip
    assert all(row.shape.endswith("in 5 sequences") for row in report.rows)
    sabotage(monkeypatch, lambda out: out.copy_(out.roll(1, 1)))
    assert not verify(variant, shapes=shapes, dtypes=["fp32"], gradients=False).passed


@settings(SETTINGS, max_examples=5)
@given(text=DRAWN, sizes=shapes(tokens=70, highest_dim=24), data=st.data())
def test_a_drawn_variant_takes_packed_sequences_or_says_why_not(text, sizes, data):
    variant = loads(text)["drawn"]
    try:
        op = compile_op(variant).over_sequences()
        form = data.draw(st.sampled_from(op.forms()), label="form")
        folds = form in {"chunked", "recurrent"}
        keys = sizes.tq if folds else sizes.tk
        state = folds and data.draw(st.booleans(), label="states")
        shape = replace(sizes, batch=1, tk=keys, sequences=4)
        hold_exactly(op, shape, form, state=state)
    except PlanError:
        assume(False)
    except InputError as error:
        assert "takes no packed sequences" in error.message


def test_other_sequences_are_never_read(ops):
    q, k, v = (torch.randn(1, 60, 2, 16) for _ in range(3))
    cu = torch.tensor([0, 25, 60], dtype=torch.int32)
    out = ops["two_sided"](q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu)
    for x in (q, k, v):
        x[:, 25:] = float("nan")
    again = ops["two_sided"](q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert torch.equal(out[:, :25], again[:, :25]) and again[:, 25:].isnan().all()


def packed_call(op: Op, batch: int = 1, **given: object) -> object:
    cu = torch.tensor([0, 4, 10], dtype=torch.int32)
    q, k, v = (torch.randn(batch, 10, 2, 16) for _ in range(3))
    return op(q, k, v, **{"cu_seqlens_q": cu, "cu_seqlens_k": cu, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 2}, "packed sequences have B = 1, not 2"),
        ({"cu_seqlens_q": torch.tensor([0, 4, 10])},
         "cu_seqlens_q is no int32 tensor of one dimension"),
        ({"cu_seqlens_k": torch.tensor([0, 10], dtype=torch.int32)},
         "cu_seqlens_q has 2 sequences, cu_seqlens_k has 1"),
        ({"cu_seqlens_k": torch.tensor([0], dtype=torch.int32)},
         "cu_seqlens_k has shape [1] and strides [1]"),
        ({"cu_seqlens_q": torch.tensor([0, 4, 11], dtype=torch.int32)},
         "cu_seqlens_q goes from 0 to 11, and there are 10 tokens"),
        ({"cu_seqlens_k": torch.tensor([1, 4, 10], dtype=torch.int32)},
         "cu_seqlens_k goes from 1 to 10, and there are 10 tokens"),
        ({"cu_seqlens_k": torch.tensor([0, 12, 10], dtype=torch.int32)},
         "cu_seqlens_k goes in falling order, and there are 10 tokens"),
    ],
)  # fmt: skip
def test_a_packed_call_that_does_not_fit_is_refused(given, message, ops):
    with pytest.raises(InputError) as caught:
        packed_call(ops["decayed"], slope=torch.zeros(2), **given)
    assert caught.value.message == message


def test_queries_without_keys_of_sequences_are_refused(ops):
    q, k, v = (torch.randn(1, 10, 2, 16) for _ in range(3))
    with pytest.raises(InputError) as caught:
        ops["plain"](q, k, v, cu_seqlens_q=torch.tensor([0, 10], dtype=torch.int32))
    assert caught.value.message == "'plain' needs input 'cu_seqlens_k'"
    assert caught.value.hints == ("pass cu_seqlens_k=cu_seqlens_q where they do not differ",)


@pytest.mark.parametrize("name", [name for name, v in loads(DECLARED).items() if not v.has_lse])
def test_packed_sequences_have_the_forms_of_one(name, ops):
    assert ops[name].over_sequences().forms() == ops[name].forms()


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ('mask = "documents(ids)"\ninputs.ids = { shape = ["b", "t"] }',
         "documents and tables of blocks hold for a sequence as a whole"),
        ('score = "s + r[h,i,j]"\nparams.r = { shape = ["h", "i", "j"] }',
         "'r' has an axis of queries and one of keys"),
        ('score = "s + b/8"', "it reads the number b of a batch entry"),
        ('score = "s*r[b,h]"\ninputs.r = { shape = ["b", "h"], grad = true }',
         "'r' has a gradient for each b, which no kernel keeps apart yet"),
    ],
)  # fmt: skip
def test_what_does_not_split_into_sequences_says_why(declared, why):
    text = f'[m]\nfeature_map = "softmax"\nscale = 1.0\n{declared}\n'
    with pytest.raises(InputError) as caught:
        packed_call(compile_op(loads(text)["m"]))
    assert caught.value.message == f"'m' takes no packed sequences: {why}"


def test_the_names_of_the_starts_are_taken():
    with pytest.raises(attnc.AttncError, match="is taken"):
        loads(
            DECLARED.replace("inputs.n =", "inputs.cu_seqlens_q =").replace(
                "n[b]", "cu_seqlens_q[b]"
            )
        )
