"""Block-sparse masks: a table of 0 and 1 decides block by block, and lists say what is visited."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc.dsl import loads
from attnc.dsl.toml_file import dumps
from attnc.errors import FieldError, InputError, LimitExceeded, MaskNotAffine, SyntaxRefused
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import hold_exactly

DECLARED = """
[sparse]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "blocks(table, 32)"
inputs.table = { shape = ["i/32", "j/32"] }

[by_head]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - z[h]*(i - j)"
mask = "causal & blocks(table, 32)"
sink = "z[h]"
params.z = { shape = ["h"], grad = true }
inputs.table = { shape = ["b", "h", "i/32", "j/32"] }

[narrow]
feature_map = "softmax"
scale = 0.3
mask = "(causal | prefix(n[b])) & blocks(table, 16)"
inputs.table = { shape = ["hkv", "i/16", "j/16"] }
inputs.n = { shape = ["b"] }

[packed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "(window(40) | prefix(3)) & documents(ids) & blocks(table, 64)"
inputs.ids = { shape = ["b", "t"] }
inputs.table = { shape = ["b", "i/64", "j/64"] }

[gated]
feature_map = "elu(x) + 1"
scale = 0.3
mask = "causal & blocks(table, 32)"
normalize = "sum"
log_decay = "-g[b,t,h]"
inputs.g = { shape = ["b", "t", "h"], grad = true }
inputs.table = { shape = ["h", "i/32", "j/32"] }

[powers]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "~causal & blocks(table, 128)"
normalize = "none"
params.table = { shape = ["i/128", "j/128"] }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(("tq", "tk", "hkv"), [(30, 170, 4), (170, 130, 2)])
def test_gradients_are_those_of_the_formula(name, tq, tk, hkv, ops):
    hold_exactly(ops[name], Shape(2, tq, tk, 4, hkv, 16, 32))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_a_table_is_the_mask_that_it_spells_out(kind, ops):
    """Against PyTorch's own attention: `bool`, integers and floats say the same."""
    q, k, v = (torch.randn(1, 100, 2, 16) for _ in range(3))
    table = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
    dense = table.repeat_interleave(32, 0).repeat_interleave(32, 1)[:100, :100].bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=dense
    ).transpose(1, 2)
    out = ops["sparse"](q, k, v, table=table.to(kind))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_a_block_that_is_left_out_is_never_read(ops):
    """NaN in one would show: 0 times NaN is NaN."""
    q, k, v = (torch.randn(1, 128, 1, 16) for _ in range(3))
    table = torch.ones(4, 4)
    table[:, 2] = 0
    out = ops["sparse"](q, k, v, table=table)
    for x in (k, v):
        x[:, 64:96] = float("nan")
    assert torch.equal(out, ops["sparse"](q, k, v, table=table))


def test_rows_without_a_block_give_nothing_and_no_gradient(ops):
    q, k, v = (torch.randn(1, 64, 1, 16, requires_grad=True) for _ in range(3))
    table = torch.tensor([[0, 0], [0, 1]])
    out, lse = ops["sparse"](q, k, v, table=table, return_lse=True)
    out.sum().backward()
    assert (out[:, :32] == 0).all() and (lse[..., :32] == float("-inf")).all()
    for x in (q, k, v):
        assert ((x.grad[:, :32] == 0).all() and x.grad[:, 32:].abs().sum() > 0) or x is q


def test_queries_are_counted_from_the_first_one(ops):
    """With fewer queries than keys, the first row of the table is the first query's."""
    q, k, v = (torch.randn(1, t, 1, 16) for t in (32, 64, 64))
    first = ops["sparse"](q, k, v, table=torch.tensor([[1, 0]]))
    torch.testing.assert_close(
        first, ops["sparse"](q, k[:, :32], v[:, :32], table=torch.ones(1, 1)), rtol=1e-5, atol=1e-5
    )


def test_full_blocks_run_without_mask_code(ops):
    """A full block's loop has no comparison, and the lists say which blocks it takes."""
    source = ops["packed"].source()
    full = source[source.index("# full tiles:") :]
    assert "m_st =" not in full and "u_ids" not in full.split("# a row that saw nothing")[0]


def test_blocks_are_declared_in_python_too():
    table = attnc.Input("table", shape="b,h,i/32,j/32")
    z = attnc.Param("z", shape="h", grad=True)
    mine = attnc.Variant(
        "by_head", feature_map="softmax", scale="rsqrt(d)", sink=z[attnc.h],
        score=attnc.softcap(attnc.s, 5) - z[attnc.h] * (attnc.i - attnc.j),
        mask=attnc.causal & attnc.blocks(table, 32),
    )  # fmt: skip
    assert mine == loads(DECLARED)["by_head"]


def test_blocks_survive_a_round_trip_and_are_part_of_the_meaning():
    found = loads(DECLARED)
    for name, variant in found.items():
        assert loads(dumps(variant))[name] == variant
        assert variant.warnings() == ()
    assert (
        found["gated"].digest
        != loads(DECLARED.replace("/32", "/64").replace(", 32", ", 64"))["gated"].digest
    )
    assert compile_op(found["gated"]).forms() == ("parallel",)


@pytest.mark.parametrize("mask", ["causal | blocks(table, 32)", "~blocks(table, 32)"])
def test_blocks_join_a_mask_by_and_alone(mask):
    with pytest.raises(MaskNotAffine) as caught:
        loads(DECLARED.replace('mask = "blocks(table, 32)"', f'mask = "{mask}"'))
    assert caught.value.message == "blocks(...) joins the rest of a mask by & alone"
    assert caught.value.hints == ("write (the rest of the mask) & blocks(table, 32)",)


def test_a_mask_has_one_table():
    text = DECLARED.replace(
        'mask = "blocks(table, 32)"', 'mask = "blocks(table, 32) & blocks(other, 32)"'
    )
    text = text.replace(
        "inputs.table", 'inputs.other = { shape = ["i/32", "j/32"] }\ninputs.table', 1
    )
    with pytest.raises(LimitExceeded) as caught:
        loads(text)
    assert caught.value.message == "a mask has one table of blocks at most"


@pytest.mark.parametrize("size", ["48", "8", "2048", "32.5", "i"])
def test_a_size_is_a_power_of_two(size):
    with pytest.raises(SyntaxRefused) as caught:
        loads(DECLARED.replace('mask = "blocks(table, 32)"', f'mask = "blocks(table, {size})"'))
    assert caught.value.message == f"{size} is no size of a block"
    assert caught.value.notes == ("a size is a power of two from 16 to 1,024",)


@pytest.mark.parametrize(
    "shape", ['"i", "j"', '"i/64", "j/64"', '"t", "i/32", "j/32"', '"j/32", "i/32"']
)
def test_a_table_has_the_axes_of_its_blocks(shape):
    with pytest.raises(SyntaxRefused) as caught:
        loads(DECLARED.replace('inputs.table = { shape = ["i/32", "j/32"] }',
                               f"inputs.table = {{ shape = [{shape}] }}"))  # fmt: skip
    assert caught.value.message == "blocks takes an input of shape [.., i/32, j/32], not table"


def test_a_table_has_no_gradient():
    text = DECLARED.replace('["i/32", "j/32"] }', '["i/32", "j/32"], grad = true }')
    with pytest.raises(FieldError) as caught:
        loads(text)
    assert caught.value.message == "'table' asks for a gradient and has none"


def test_a_table_of_another_shape_is_refused(ops):
    q, k, v = (torch.randn(1, 100, 2, 16) for _ in range(3))
    with pytest.raises(InputError) as caught:
        ops["sparse"](q, k, v, table=torch.ones(3, 4))
    assert caught.value.message == "'table' has shape [3, 4], expected [4, 4]"


def test_a_block_mask_of_flash_attention_v1_is_converted(ops):
    """16 queries by 256 keys there; the table shows the same pairs."""
    mask = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [1, 1]])
    table = attnc.block_table(mask, 16, lengths=(70, 300))
    dense = mask.repeat_interleave(16, 0).repeat_interleave(256, 1)[:70, :300]
    assert table.shape == (5, 19)
    shown = table.repeat_interleave(16, 0).repeat_interleave(16, 1)[:70, :300]
    assert torch.equal(shown, dense.float())


def test_a_coarse_block_mask_takes_large_blocks():
    mask = torch.tensor([[1, 0], [0, 1]]).repeat_interleave(4, 0).expand(3, 8, 2)
    table = attnc.block_table(mask, 64)
    assert table.shape == (3, 2, 8)
    assert torch.equal(table[0], torch.tensor([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4]))
    assert attnc.block_table(mask[:, :7], 64, lengths=(100, 512)).shape == (3, 2, 8)


@pytest.mark.parametrize(
    ("size", "lengths", "message"),
    [
        (64, None, "the block mask tells queries of one block of 64 apart"),
        (24, None, "blocks of 16 queries and of 24 fit into each other neither way"),
        (16, (90, 512), "the block mask has 5 blocks of 16 queries, and 90 queries have 6"),
    ],
)
def test_a_block_mask_that_does_not_fit_is_refused(size, lengths, message):
    with pytest.raises(InputError) as caught:
        attnc.block_table(
            torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [1, 1]]), size, lengths=lengths
        )
    assert caught.value.message == message
