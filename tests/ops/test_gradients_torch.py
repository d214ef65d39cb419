"""How PyTorch meets the gradients: checks of operators, compile, functional, autocast, strides."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from attnc.dsl import loads
from attnc.errors import InputError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.operators import op_named
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Shape
from tests.ops.test_gradients import DECLARED, wide


@pytest.mark.parametrize("name", ["flash", "lightning", "linear"])
def test_pytorchs_own_checks_of_an_operator_pass(name, ops):
    op = ops[name]
    q, k, v, do = (torch.randn(1, 20, 2, 32) for _ in range(4))
    tensors = [torch.rand(2) * 0.1 for _ in op.tensor_names]
    torch.library.opcheck(torch.ops.attnc.forward, (op.key, q, k, v, tensors, None, "", "fp32"))
    kept = op.forward(q, k, v, tensors, None, None, "fp32")[:2] if op.keeps_row_sums else []
    incoming = [do, torch.randn(1, 2, 20)] if op.softmax else [do]
    wanted = " ".join(op.tensor_names)
    torch.library.opcheck(
        torch.ops.attnc.backward,
        (op.key, q, k, v, tensors, None, kept, incoming, wanted, "", "fp32"),
    )


@pytest.mark.parametrize("name", ["flash", "lightning", "linear"])
def test_one_compile_serves_many_lengths_forward_and_backward(name, ops):
    from torch._dynamo.testing import CompileCounterWithBackend

    op = ops[name]
    tensors = {key: torch.rand(2) * 0.1 for key in op.tensor_names}
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v: op(2 * q, k, v, **tensors).sum(), backend=counter, fullgraph=True,
        dynamic=True,
    )  # fmt: skip
    for tokens in (17, 40, 63):
        q, k, v = (torch.randn(1, tokens, 2, 32, requires_grad=True) for _ in range(3))
        compiled(q, k, v).backward()
        plain = q.detach().clone().requires_grad_()
        op(2 * plain, k.detach(), v.detach(), **tensors).sum().backward()
        torch.testing.assert_close(q.grad, plain.grad)
    assert counter.frame_count == 1


def test_functional_grad_and_checkpointing_give_the_same_gradients(ops):
    from torch.utils.checkpoint import checkpoint

    op = ops["flash"]
    q, k, v = (torch.randn(1, 20, 2, 32) for _ in range(3))
    loss = lambda q, k, v: op(q, k, v).pow(2).sum()  # noqa: E731
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    loss(*leaves).backward()
    for gradient, leaf in zip(torch.func.grad(loss, (0, 1, 2))(q, k, v), leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)
    again = q.clone().requires_grad_()
    checkpoint(loss, again, k, v, use_reentrant=False).backward()
    torch.testing.assert_close(again.grad, leaves[0].grad)


def test_one_tensor_as_query_key_and_value_gets_the_sum_of_their_gradients(ops):
    x = torch.randn(1, 30, 2, 16, dtype=torch.float64, requires_grad=True)
    ops["flash"](x, x, x).pow(2).sum().backward()
    apart = [x.detach().clone().requires_grad_() for _ in range(3)]
    ops["flash"](*apart).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, sum(part.grad for part in apart))


def test_autocast_takes_its_dtype_and_gives_gradients_in_the_leafs(ops):
    q, k, v = (torch.randn(1, 30, 2, 32, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops["flash"](q, k, v)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_an_expanded_gradient_and_strided_inputs_come_through(ops):
    """`sum().backward()` hands over a gradient whose strides are all zero."""
    op = ops["linear"]
    q, k, v = (torch.rand(1, 2, 30, 16, dtype=torch.float64).transpose(1, 2) for _ in range(3))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    op(*leaves).sum().backward()
    ones = torch.ones(1, 30, 2, 16, dtype=torch.float64)
    ref = reference_gradients(op.variant, q, k, v, {}, Incoming(ones))
    for leaf, name in zip(leaves, "qkv", strict=True):
        torch.testing.assert_close(leaf.grad, ref[name])


def saved_for_backward(op: Op, *inputs: torch.Tensor, **tensors: torch.Tensor) -> int:
    """Elements that autograd keeps of one call, the inputs themselves not counted."""
    kept: dict[int, int] = {}
    own = {x.data_ptr() for x in (*inputs, *tensors.values())}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = op(*inputs, **tensors)
    assert out.requires_grad
    return sum(kept.values())


def test_softmax_keeps_o_and_lse_and_a_state_keeps_nothing_but_its_inputs(ops):
    q, k, v = (torch.randn(1, 50, 2, 16, requires_grad=True) for _ in range(3))
    assert saved_for_backward(ops["flash"], q, k, v) == 50 * 2 * 16 + 50 * 2
    assert saved_for_backward(ops["linear"], q, k, v) == 50 * 2 * 16 + 50 * 2
    slope = torch.rand(2, requires_grad=True)
    assert saved_for_backward(ops["lightning"], q, k, v, slope=slope) == 0


def test_no_gradient_is_computed_that_nobody_wants(ops):
    op = ops["lightning"]
    q, k, v = (torch.randn(1, 40, 2, 16, requires_grad=True) for _ in range(3))
    slope = torch.rand(2) * 0.1
    op(q, k, v, slope=slope).sum().backward()
    # the operators find the first op of a variant, which holds what was built
    built = op_named(op.key).built_plans.by_kind
    plans = [found.plan for (key, _), found in built.items() if key.phase == "backward"]
    assert any(not plan.derivation.decay for plan in plans)


def test_a_tensor_that_was_declared_without_grad_says_so():
    op = compile_op(loads(DECLARED)["biased"])
    inputs = wide(op, Shape(1, 20, 20, 2, 1, 16, 16))
    tensors = dict(inputs.tensors)
    tensors["y"] = tensors["y"].clone().requires_grad_()
    with pytest.raises(InputError) as caught:
        op(*inputs.qkv, **tensors)
    assert caught.value.message == ("input 'y' of 'biased' requires grad, and is declared without")
    assert caught.value.hints == (
        'declare inputs.y = { shape = ["b", "i"], grad = true }, or detach the tensor',
    )


def test_tangents_are_refused_and_not_dropped():
    op = compile_op(shipped()["flash"])
    x = torch.zeros(1, 8, 2, 16)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        op(forward_ad.make_dual(x, x.clone()), x, x)
