"""Names of declared tensors: they are keywords of a call, beside those that a call has itself."""

from __future__ import annotations

import inspect

import pytest

from attnc import Variant
from attnc.dsl import Convolution
from attnc.errors import FieldError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import Op
from attnc.ops.packaged_filter import PackagedFilter
from attnc.ops.packaged_op import PackagedOp


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
