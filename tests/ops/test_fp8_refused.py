"""What 8-bit inputs cannot do, and what is said of each."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc.codegen.planning.planner import plans
from attnc.dsl import loads
from attnc.errors import AttncError, InputError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from tests.ops.test_fp8 import PLAIN, drawn

REFUSED = {
    "no scale": """
error[A300]: 'plain' needs input 'k_scale'
  note: declared with shape [hkv] = [1]
  hint: pass k_scale=... to the call""",
    "a scale of query heads for k": """
error[A300]: 'k_scale' has shape [2], expected [1]
  note: declared as [hkv]""",
    "a scale of zero": """
error[A300]: v_scale holds 0: a scale has to be positive
  hint: the largest magnitude of a head divided by 448 uses e4m3's range""",
    "a scale that is nan": """
error[A300]: q_scale holds nan: a scale has to be positive
  hint: the largest magnitude of a head divided by 448 uses e4m3's range""",
    "scales of bf16": """
error[A300]: 'plain' takes no argument 'q_scale'
  note: declared params and inputs: none
  hint: scales come with torch.float8_e4m3fn tensors: multiply others by theirs""",
    "k of another type": """
error[A300]: k is torch.bfloat16, q is torch.float8_e4m3fn: they must be of one type""",
    "e5m2": """
error[A300]: q is torch.float8_e5m2; kernels exist for fp16, bf16 and fp32, and for e4m3 with scales
  hint: convert the tensors first""",
    "a gradient": """
error[A300]: 'plain' has no gradient in e4m3, and q_scale requires one
  note: 8-bit tensors have the forward alone
  hint: call it under torch.no_grad(), or train in bf16 with q, k and v multiplied by their \
scales""",
    "an output of integers": """
error[A300]: out_dtype is torch.int32; kernels of torch.float8_e4m3fn tensors write \
torch.float16, torch.bfloat16, torch.float32
  hint: leave it out for torch.bfloat16""",
    "an output of another type than bf16's": """
error[A300]: out_dtype is torch.float32, and q is torch.bfloat16: the output has q's type
  note: torch.float8_e4m3fn tensors alone give an output of another type
  hint: leave out_dtype out, and convert the output""",
    "the state family": """
error[A300]: 'linear' takes no e4m3 tensors: it belongs to the state family, and softmax alone \
has such a kernel
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "a sum of terms": """
error[A300]: 'window_taylor' takes no e4m3 tensors: it is a sum of terms, and those have no such \
kernel yet
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "a value": """
error[A300]: 'valued' takes no e4m3 tensors: its value is made of v, and would have to be rounded \
to 8 bits again
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "the name of a scale": """
error[A300]: 'named' takes no e4m3 tensors: it declares a param 'q_scale', the name of a scale
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "a step": """
error[A300]: 'plain' has no decode in e4m3
  note: 8-bit tensors have the forward alone
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "a backward": """
error[A200]: 'plain' has no backward in e4m3
  note: 8-bit tensors have the forward of the softmax family alone
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "a device without such products": """
error[A200]: a100 (cuda:80) multiplies no e4m3 tensors
  note: these do: h100, h200, l4, rtx4090, b200
  hint: convert q, k and v to bf16, and multiply them by their scales""",
    "the gluon backend": """
error[A200]: the gluon backend cannot take the forward of 'plain'
  note: it has 16-bit tensors alone, not e4m3
  hint: leave the backend out: triton takes all that can be declared""",
}


OTHERS = loads(
    """
[valued]
feature_map = "softmax"
scale = 1
value = "2*v"

[named]
feature_map = "softmax"
scale = 1
score = "s*q_scale"
params.q_scale = { shape = [] }
"""
)


def refused_call(title: str) -> None:
    op = compile_op(PLAIN["plain"])
    (q, k, v), scales = drawn(5, 5, 2, 1, 64, 64)
    match title:
        case "no scale":
            op(q, k, v)
        case "a scale of query heads for k":
            op(q, k, v, **{**scales, "k_scale": scales["q_scale"]})
        case "a scale of zero":
            op(q, k, v, **{**scales, "v_scale": torch.zeros(1)})
        case "a scale that is nan":
            op(q, k, v, **{**scales, "q_scale": torch.tensor([1.0, float("nan")])})
        case "scales of bf16":
            op(q.bfloat16(), k.bfloat16(), v.bfloat16(), **scales)
        case "k of another type":
            op(q, k.bfloat16(), v, **scales)
        case "e5m2":
            op(*(x.to(torch.float8_e5m2) for x in (q.float(), k.float(), v.float())), **scales)
        case "a gradient":
            op(q, k, v, **{**scales, "q_scale": scales["q_scale"].requires_grad_()})
        case "an output of integers":
            op(q, k, v, out_dtype=torch.int32, **scales)
        case "an output of another type than bf16's":
            op(q.bfloat16(), k.bfloat16(), v.bfloat16(), out_dtype=torch.float32)
        case "the state family":
            compile_op(attnc.shipped()["linear"])(q, k, v, **scales)
        case "a sum of terms":
            compile_op(attnc.shipped()["window_taylor"])(q, k, v, **scales)
        case "a value":
            compile_op(OTHERS["valued"])(q, k, v, **scales)
        case "the name of a scale":
            compile_op(OTHERS["named"])(q, k, v, **scales)
        case "a step":
            op.step(q[:, :1], k[:, :1], v[:, :1], None, **scales)
        case "a backward":
            op.plan(dtype="e4m3", backward=True)
        case "a device without such products":
            compile_op(PLAIN["plain"], device="a100").plan(dtype="e4m3")
        case "the gluon backend":
            plans(Op(PLAIN["plain"], backend="gluon").request(None, "e4m3", None, False))


@pytest.mark.parametrize("title", REFUSED)
def test_what_bytes_cannot_do_is_refused_with_exactly_this_text(title):
    with pytest.raises(AttncError) as caught:
        refused_call(title)
    assert str(caught.value) == REFUSED[title].strip("\n")


def test_scales_and_bytes_go_together():
    (q, k, v), scales = drawn(5, 5, 2, 1, 64, 64)
    scaled = compile_op(PLAIN["plain"]).over_scales(q)
    with pytest.raises(InputError, match=r"q is torch\.bfloat16; scales come with"):
        scaled(q.bfloat16(), k.bfloat16(), v.bfloat16(), **scales)
