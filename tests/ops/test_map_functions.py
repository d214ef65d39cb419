"""Every function of the grammar in a feature map of x, held to the same map in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attnc.dsl import loads
from attnc.dsl.feature import nonnegative
from attnc.errors import NoFamily
from attnc.ops.op import compile as compile_op
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "min(max(x, 0), 6) + 0.1": lambda x: x.clamp(0, 6) + 0.1,
    "max(x, -x/2, 0.25)": lambda x: torch.maximum(x, -x / 2).clamp(min=0.25),
    "sqrt(x**2 + 1)": lambda x: (x * x + 1).sqrt(),
    "log1p(relu(x)) + 0.1": lambda x: x.clamp(min=0).log1p() + 0.1,
    "log(1 + exp(x))": lambda x: x.exp().log1p(),
    "softcap(x, 2) + 2": lambda x: 2 * torch.tanh(x / 2) + 2,
    "where(x > 0, x + 1, exp(x))": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()),
    "where((x > -1) & (x < 1), x**2, abs(x))": lambda x: torch.where(x.abs() < 1, x * x, x.abs()),
}


def declared(feature_map: str, normalize: str = "sum"):
    body = f'feature_map = "{feature_map}"\nscale = 0.5\nmask = "causal"\nnormalize = "{normalize}"'
    return loads(f"[v]\n{body}\n")["v"]


@pytest.mark.parametrize("form", ["parallel", "chunked"])
@pytest.mark.parametrize("text", MAPS)
def test_a_map_of_any_function_is_what_torch_makes_of_it_with_its_gradients(text, form):
    leaves = [torch.randn(1, 19, 2, dim, requires_grad=True) for dim in (20, 20, 17)]
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    weights = torch.einsum("bihk,bjhk->bhij", MAPS[text](q), MAPS[text](k)).tril()
    expected = torch.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdim=True), v)
    out = compile_op(declared(text))(*leaves, form=form)
    assert (out - expected).norm() < 1e-5 * expected.norm()
    incoming = torch.randn_like(expected)
    found = torch.autograd.grad(out, leaves, incoming.float())
    wanted = torch.autograd.grad(expected, (q, k, v), incoming)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_verify_draws_what_a_logarithm_has_a_value_of():
    variant = declared("log(x)**2 + 0.1", normalize="none")
    assert verify(variant, dtypes=["fp32"], shapes=[Shape(1, 33, 33, 2, 1, 16, 16)]).passed


@pytest.mark.parametrize(
    "text", ["max(x, 0)", "min(relu(x), 6)", "sqrt(x**2 + 1)", "where(x > 0, x**2, 0)",
             "log1p(exp(x))", "max(tanh(x), 0) + 1", "relu(silu(x))", "tanh(x) + 1",
             "2 + softcap(x, 2)", "1 - sigmoid(x)", "log(1 + exp(x))",
             "softcap(relu(x), 3)", "max(x, -1) + 1"],
)  # fmt: skip
def test_these_maps_are_provably_nowhere_negative(text):
    assert nonnegative(declared(text).feature_map, 1)


@pytest.mark.parametrize(
    "text", ["min(x, 0)", "where(x > 0, 1, x)", "tanh(x) + 0.9", "1.5 - softcap(x, 2)"]
)
def test_of_these_maps_nothing_is_proved(text):
    assert not nonnegative(declared(text).feature_map, 1)


def test_a_map_that_is_a_condition_is_refused():
    with pytest.raises(NoFamily, match="is a condition, not a number"):
        declared("x > 0")


GATES = {
    "": lambda g: torch.zeros_like(g),
    "-softplus(g[b,t,h,k])": lambda g: -torch.nn.functional.softplus(g),
}


@pytest.mark.parametrize("decay", GATES)
@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_a_map_without_a_value_at_0_leaves_no_trace_of_padding(form, decay):
    gated = f'log_decay = "{decay}"\n' * bool(decay)
    tensor = 'inputs.g = { shape = ["b", "t", "h", "k"] }\n' * bool(decay)
    body = f'feature_map = "1/x"\nscale = 0.5\nmask = "causal"\nnormalize = "none"\n{gated}{tensor}'
    leaves = [torch.randn(1, 37, 2, dim).abs() + 0.5 for dim in (20, 20, 17)]
    q, k, v = (x.double().requires_grad_() for x in leaves)
    gates = torch.randn(1, 37, 2, 20)
    sums = GATES[decay](gates.double()).cumsum(1)
    apart = (sums[:, :, None] - sums[:, None]).clamp(max=0).exp()
    pairs = torch.einsum("bihk,bjhk,bijhk->bhij", 1 / q, 1 / k, apart)
    expected = torch.einsum("bhij,bjhv->bihv", 0.5 * pairs.tril(), v)
    given = [x.requires_grad_() for x in leaves]
    out = compile_op(loads(f"[v]\n{body}")["v"])(
        *given, form=form, **({"g": gates} if decay else {})
    )
    assert (out - expected).norm() < 1e-5 * expected.norm()
    incoming = torch.randn_like(expected)
    found = torch.autograd.grad(out, given, incoming.float())
    wanted = torch.autograd.grad(expected, (q, k, v), incoming)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()
