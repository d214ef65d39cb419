"""Numbers of masks that fp32 does not tell apart, or that are not whole, are refused on a CPU."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.errors import InputError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op

DECLARED = """
[packed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & documents(ids)"
inputs.ids = { shape = ["b", "t"] }

[prefixed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal | prefix(n[b])"
inputs.n = { shape = ["b"] }

[kept]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal & blocks(table, 16) & window(w)"
inputs.table = { shape = ["i/16", "j/16"] }
params.w = { shape = [] }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def drawn() -> list[torch.Tensor]:
    return [torch.randn(1, 6, 1, 16) for _ in range(3)]


@pytest.mark.parametrize("first", [2**24, -(2**24) - 4, 10**15])
def test_documents_that_fp32_takes_for_one_are_refused(first, ops):
    ids = torch.tensor([[0, 0, 1, 1, 2, 2]]) + first
    with pytest.raises(InputError, match="'ids' numbers documents past") as caught:
        ops["packed"](*drawn(), ids=ids)
    assert "ids.unique(return_inverse=True)[1]" in str(caught.value)
    # what the hint says makes the call that was meant
    qkv, named = drawn(), ids.unique(return_inverse=True)[1]
    assert torch.equal(ops["packed"](*qkv, ids=named), ops["packed"](*qkv, ids=ids - first))


@pytest.mark.parametrize("last", [2**24, -(2**24), 2.0**24])
def test_the_largest_number_of_a_document_is_taken(last, ops):
    qkv, ids = drawn(), torch.tensor([[0, 0, 1, 1, 2, 2]])
    given = torch.where(ids == 2, last, ids)
    assert torch.equal(ops["packed"](*qkv, ids=given), ops["packed"](*qkv, ids=ids))


@pytest.mark.parametrize("number", [2.5, -0.5, float("nan")])
def test_a_bound_that_is_not_whole_is_refused(number, ops):
    with pytest.raises(InputError, match=f"'n' holds {number:g}, no whole number"):
        ops["prefixed"](*drawn(), n=torch.tensor([number]))
    with pytest.raises(InputError, match=f"'w' holds {number:g}, no whole number"):
        ops["kept"](*drawn(), w=number, table=torch.ones(1, 1))


def test_documents_may_be_bools(ops):
    qkv, ids = drawn(), torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert torch.equal(ops["packed"](*qkv, ids=ids.bool()), ops["packed"](*qkv, ids=ids))


def test_a_table_holds_any_numbers(ops):
    qkv = drawn()
    one, half = (ops["kept"](*qkv, w=3, table=torch.tensor([[x]])) for x in (1.0, 0.5))
    assert torch.equal(one, half)
