"""Attention sinks: the logit of a key of value 0 that every row sees."""

from __future__ import annotations

import pytest
import torch

from attnc.dsl import loads
from attnc.dsl.toml_file import dumps
from attnc.errors import DeclarationError, FieldError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import hold_exactly

DECLARED = """
[learned]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "causal"
sink = "z[h]"
params.z = { shape = ["h"], grad = true }

[shared]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "softcap(s, 5) - z[h]*(i - j) + y*s"
mask = "causal & window(9)"
sink = "z[h]**2 + 0.1*h + y"
params.z = { shape = ["h"], grad = true }
params.y = { shape = [], grad = true }

[fixed]
feature_map = "softmax"
scale = 0.3
sink = 0.0

[by_input]
feature_map = "softmax"
scale = 0.3
score = "s - u[h]*(i - j)"
sink = "w[b,hkv]"
inputs.w = { shape = ["b", "hkv"], grad = true }
params.u = { shape = ["h"], grad = true }
"""


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in loads(DECLARED).items()}


def test_a_sink_takes_its_share_of_the_softmax_and_gives_nothing(ops):
    """Against torch's own softmax over one logit more, which is then dropped."""
    q, k, v = (torch.randn(2, 50, 2, 16) for _ in range(3))
    z = torch.randn(2)
    out, lse = ops["learned"](q, k, v, z=z, return_lse=True)
    s = torch.einsum("bihd,bjhd->bhij", q, k) / 4
    s = s.masked_fill(~torch.ones(50, 50).tril().bool(), float("-inf"))
    logits = torch.cat([s, z[None, :, None, None].expand(2, 2, 50, 1)], -1)
    weights = logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(out, torch.einsum("bhij,bjhd->bihd", weights, v))
    torch.testing.assert_close(lse, logits.logsumexp(-1))


def test_a_row_that_sees_the_sink_alone_gives_zeros_and_its_logit(ops):
    q, k, v = (torch.randn(1, t, 1, 16) for t in (9, 4, 4))
    out, lse = ops["learned"](q, k, v, z=torch.tensor([0.7]), return_lse=True)
    assert (out[:, :5] == 0).all()
    torch.testing.assert_close(lse[..., :5], torch.full((1, 1, 5), 0.7))


def test_a_sink_far_below_the_scores_changes_nothing(ops):
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    plain = compile_op(shipped()["flash"])(q, k, v)
    out = ops["learned"](q, k, v, z=torch.full((2,), -1e4))
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-6)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("name", loads(DECLARED))
@pytest.mark.parametrize(("tq", "tk", "hkv"), [(40, 40, 2), (30, 70, 4), (70, 30, 1)])
def test_every_tensor_of_a_sink_has_its_gradient(name, tq, tk, hkv, ops):
    """`shared` reads one tensor in the score and in the sink: its gradient is the sum of both."""
    hold_exactly(ops[name], Shape(2, tq, tk, 4, hkv, 16, 32))


def test_a_sink_survives_a_round_trip_and_is_part_of_the_meaning():
    found = loads(DECLARED)
    for name, variant in found.items():
        assert loads(dumps(variant))[name] == variant
    other = loads(DECLARED.replace('sink = "z[h]"', 'sink = "2*z[h]"'))
    assert found["learned"].digest != other["learned"].digest
    assert "sink z[h]" in found["learned"].summary


def test_a_sink_without_a_softmax_is_refused():
    text = '[bad]\nfeature_map = "identity"\nscale = 1.0\nnormalize = "none"\nsink = 0.0\n'
    with pytest.raises(FieldError) as caught:
        loads(text)
    assert caught.value.message == "'bad' has a sink and no softmax"
    assert caught.value.notes == (
        "a sink adds exp(sink) to the sum that a softmax row is divided by",
    )


def test_a_sink_of_a_token_is_refused():
    text = DECLARED.replace('"z[h]"', '"z[t]"').replace('shape = ["h"]', 'shape = ["t"]')
    with pytest.raises(DeclarationError) as caught:
        loads(text)
    assert caught.value.message == "z[t] is read at t, and a sink has no t"
