"""Names of declared tensors: they are keywords of a call, beside those that a call has itself."""

from __future__ import annotations

import inspect

import pytest

from attnc import Variant
from attnc.dsl import Convolution, loads
from attnc.errors import FieldError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.packaged_filter import PackagedFilter
from attnc.ops.packaged_op import PackagedOp
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import hold_exactly


def own(*owners: type) -> list[str]:
    """Every argument of a call, a step or a reference that is no declared tensor."""
    names = ("__call__", "reference", "prefill", "step")
    calls = [getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)]
    arguments = [p for call in calls for p in inspect.signature(call).parameters.values()]
    return sorted({p.name for p in arguments if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}})


@pytest.mark.parametrize("name", [*own(Op, PackagedOp), "cu_seqlens_q", "cu_seqlens_k"])
def test_no_tensor_of_an_attention_has_the_name_of_an_argument(name):
    with pytest.raises(FieldError, match="is taken"):
        Variant(
            "named", feature_map="softmax", scale=1, score=f"s*{name}", params={name: {"shape": []}}
        )


@pytest.mark.parametrize("name", own(ConvolutionOp, PackagedFilter))
def test_no_tensor_of_a_convolution_has_the_name_of_an_argument(name):
    with pytest.raises(FieldError, match="is taken"):
        Convolution(
            "named", weight=f"{name}[c, i-j]", mask="causal",
            params={name: {"shape": ["c", "T"]}},
        )  # fmt: skip


def test_no_tensor_of_a_convolution_has_the_name_of_another_ones_row():
    with pytest.raises(FieldError, match="'g_b' is taken: kernels call the rows of 'g' g_a and"):
        Convolution(
            "named", weight="w[c, i-j]", skip="g_b[c]", pregate="g[b,t,c]", mask="causal",
            params={"w": {"shape": ["c", "T"]}, "g_b": {"shape": ["c"]}},
            inputs={"g": {"shape": ["b", "t", "c"]}},
        )  # fmt: skip


# names that go on as the names of another one's buffers and partial sums do
BESIDE = """
[read_at_two_tokens]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s + a[i]*a[j] + a_i[h]*(i - j)/9 - u[b,i,h]*u[b,j,h] + u_bih[h]*s - u_bjh[b,j]"
mask = "causal"
inputs.a = { shape = ["t"], grad = true }
inputs.u = { shape = ["b", "t", "h"], grad = true }
inputs.u_bjh = { shape = ["b", "j"], grad = true }
params.a_i = { shape = ["h"], grad = true }
params.u_bih = { shape = ["h"], grad = true }

[of_a_head]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s*a[h] + a_h*(i - j)"
sink = "a[h]*a_h"
mask = "causal"
params.a = { shape = ["h"], grad = true }
params.a_h = { shape = [], grad = true }

[read_in_a_value_too]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "s*m + m_value*(i - j)"
sink = "m + m_sink"
value = "v*m*m_value*m_sink"
mask = "causal"
params.m = { shape = [], grad = true }
params.m_sink = { shape = [], grad = true }
params.m_value = { shape = [], grad = true }

[in_a_decay]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-a[h]**2 - a_h**2"
value = "v*a[h]*a_h*a_h_value"
mask = "causal"
normalize = "none"
params.a = { shape = ["h"], grad = true }
params.a_h = { shape = [], grad = true }
params.a_h_value = { shape = [], grad = true }
"""


@pytest.mark.parametrize("name", loads(BESIDE))
def test_a_name_that_goes_on_from_another_has_a_gradient_of_its_own(name):
    op = compile_op(loads(BESIDE)[name])
    for form in op.forms():
        hold_exactly(op, Shape(2, 21, 21, 2, 1, 16, 24), form)
