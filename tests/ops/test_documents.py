"""Documents packed into one sequence: tokens of different ones do not see each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import attnc
from attnc.dsl import loads
from attnc.dsl.toml_file import dumps
from attnc.errors import FieldError, MaskNotAffine, SyntaxRefused
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import hold_exactly

DECLARED = """
[packed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[both]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - z[h]*(i - j)"
mask = "(window(9) | prefix(3)) & documents(ids)"
sink = "z[h]"
params.z = { shape = ["h"], grad = true }
inputs.ids = { shape = ["b", "t"] }

[two_sided]
feature_map = "softmax"
scale = 0.3
mask = "documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[gated]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal & documents(ids)"
normalize = "sum"
log_decay = "-g[b,t,h]"
inputs.ids = { shape = ["b", "t"] }
inputs.g = { shape = ["b", "t", "h"], grad = true }

[decayed]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
normalize = "none"
log_decay = "-slope[h]"
inputs.ids = { shape = ["b", "t"] }
params.slope = { shape = ["h"], grad = true }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.rest(keep=4)
@pytest.mark.parametrize("name", ["packed", "two_sided", "decayed"])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.float32])
def test_packed_documents_are_the_documents_one_by_one(name, kind, ops):
    lengths = [1, 40, 23, 70]
    q, k, v = (torch.randn(1, sum(lengths), 2, 16) for _ in range(3))
    ids = torch.repeat_interleave(torch.tensor([7, 3, 9, 4]), torch.tensor(lengths))[None].to(kind)
    extra = {"slope": torch.tensor([0.1, 0.3])} if name == "decayed" else {}
    whole = ops[name](q, k, v, ids=ids, **extra)
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    for start, stop in pairwise(starts):
        part = [x[:, start:stop] for x in (q, k, v)]
        alone = ops[name](*part, ids=torch.zeros(1, stop - start, dtype=kind), **extra)
        torch.testing.assert_close(whole[:, start:stop], alone, rtol=1e-5, atol=1e-5)


def test_keys_of_other_documents_are_never_read(ops):
    """NaN in a tile of another one would show: 0 times NaN is NaN."""
    q, k, v = (torch.randn(1, 512, 1, 16) for _ in range(3))
    ids = torch.arange(512)[None] // 200
    out = ops["two_sided"](q, k, v, ids=ids)
    for x in (k, v):
        x[:, 448:] = float("nan")
    again = ops["two_sided"](q, k, v, ids=ids)
    assert torch.equal(out[:, :384], again[:, :384])
    assert again[:, 400:].isnan().all()


@pytest.mark.parametrize("order", ["sorted", "drawn"])
def test_documents_in_any_order_are_compared_pair_by_pair(order, ops):
    q, k, v = (torch.randn(2, 300, 1, 16) for _ in range(3))
    ids = torch.randint(0, 4, (2, 300))
    ids = ids.sort(1).values if order == "sorted" else ids
    dense = ids[:, None, :, None] == ids[:, None, None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=dense, scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(ops["two_sided"](q, k, v, ids=ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.rest(keep=4)
@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(("tq", "tk", "hkv"), [(40, 40, 2), (30, 70, 4), (70, 30, 1)])
def test_gradients_stay_inside_documents(name, tq, tk, hkv, ops):
    hold_exactly(ops[name], Shape(2, tq, tk, 4, hkv, 16, 32))


def test_a_row_before_token_0_is_of_no_document(ops):
    """Its id would be read as 0, which is a document's own."""
    q, k, v = (torch.randn(1, t, 1, 16) for t in (9, 4, 4))
    out, lse = ops["two_sided"](q, k, v, ids=torch.zeros(1, 4), return_lse=True)
    assert (out[:, :5] == 0).all() and (lse[..., :5] == float("-inf")).all()
    assert (out[:, 5:] != 0).any()


def test_a_state_crosses_no_document_so_the_chunked_form_is_not_legal(ops):
    assert ops["gated"].forms() == ("parallel",)


def test_documents_are_declared_in_python_too():
    ids = attnc.Input("ids", shape="b,t")
    mine = attnc.Variant(
        "packed", feature_map="softmax", scale="rsqrt(d)",
        mask=attnc.causal & attnc.documents(ids),
    )  # fmt: skip
    assert mine == loads(DECLARED)["packed"]


def test_documents_survive_a_round_trip_and_are_part_of_the_meaning():
    found = loads(DECLARED)
    for name, variant in found.items():
        assert loads(dumps(variant))[name] == variant
    plain = loads(DECLARED.replace(" & documents(ids)", ""))["packed"]
    assert found["packed"].digest != plain.digest
    assert found["packed"].warnings() == ()


@pytest.mark.parametrize("mask", ["causal | documents(ids)", "~documents(ids)"])
def test_documents_join_a_mask_by_and_alone(mask):
    with pytest.raises(MaskNotAffine) as caught:
        loads(DECLARED.replace("causal & documents(ids)", mask))
    assert caught.value.message == "documents(...) joins the rest of a mask by & alone"
    assert caught.value.hints == ("write (the rest of the mask) & documents(ids)",)


def test_what_names_documents_has_a_number_a_token():
    with pytest.raises(SyntaxRefused) as caught:
        loads(DECLARED.replace('shape = ["b", "t"]', 'shape = ["b"]'))
    assert caught.value.message == "documents takes an input of shape [b, t], not ids"


def test_what_names_documents_has_no_gradient():
    text = DECLARED.replace('shape = ["b", "t"] }', 'shape = ["b", "t"], grad = true }')
    with pytest.raises(FieldError) as caught:
        loads(text)
    assert caught.value.message == "'ids' asks for a gradient and has none"
