"""Kinks, ties and powers: where sympy's derivative, or its idea of a number, is not torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op

NORMAL, ZEROS, COUNTED = torch.randn, torch.zeros, lambda n, **kind: torch.arange(n, **kind)
Score = Callable[[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]


def rows(x: Tensor) -> Tensor:
    """[B, T, H] as read at i, over [B, H, TQ, TK]."""
    return x.transpose(1, 2)[..., None]


def keys(x: Tensor) -> Tensor:
    """The same as read at j."""
    return x.transpose(1, 2)[:, :, None]


def heads(x: Tensor) -> Tensor:
    """[H] over [B, H, TQ, TK]."""
    return x[:, None, None]


def amax(*parts: Tensor) -> Tensor:
    """The greatest; those that tie share the gradient alike."""
    return torch.stack(torch.broadcast_tensors(*parts)).amax(0)


# a score as it is declared, as torch would write it, and how each tensor is drawn
SCORES: dict[str, tuple[str, Score, dict[str, Callable[..., Tensor]]]] = {
    "a token ties with itself": (
        "s + max(u[b,i,h], u[b,j,h]) - min(2*u[b,i,h], 2*u[b,j,h])",
        lambda s, i, j, h, x: (
            s
            + torch.maximum(rows(x["u"]), keys(x["u"]))
            - 2 * torch.minimum(rows(x["u"]), keys(x["u"]))
        ),
        {"u": NORMAL},
    ),
    "three parameters start at 0": (
        "s*(1 + max(a[h], z[h], 0)) - min(a[h], 2*z[h], 3*z[h], 1)*abs(s)",
        lambda s, i, j, h, x: (
            s * (1 + amax(heads(x["a"]), heads(x["z"]), torch.zeros(())))
            + amax(-heads(x["a"]), -2 * heads(x["z"]), -3 * heads(x["z"]), -torch.ones(()))
            * s.abs()
        ),
        {"a": ZEROS, "z": ZEROS},
    ),
    "a power of a distance": (
        "s - a[h]*(i - j)**z[h]",
        lambda s, i, j, h, x: s - heads(x["a"]) * (i - j).clamp(min=0) ** heads(x["z"]),
        {"a": NORMAL, "z": torch.rand},
    ),
    "whole powers of either sign": (
        "s**h - (-1)**i/3 + (-0.5)**(i - j) + 0**h + (j - i - 3)**h/40",
        lambda s, i, j, h, x: (
            torch.stack([s[:, n] ** n for n in range(3)], 1)
            - torch.cos(torch.pi * i) / 3
            + torch.cos(torch.pi * (i - j)) * 0.5 ** (i - j)
            + (h == 0)
            + torch.where(h == 0, 1, torch.where(h == 1, j - i - 3, (j - i - 3) ** 2)) / 40
        ),
        {},
    ),
    "a power with a power of 0 among its own": (
        "s + abs(u[b,j,h])**a[h] + (a[h]*s)**0",
        lambda s, i, j, h, x: s + keys(x["u"]).abs() ** heads(x["a"]) + 1,
        {"u": NORMAL, "a": COUNTED},
    ),
    "what sympy would take the real part of": (
        "abs(exp(softplus(s)/4)) + abs(2**sigmoid(s)) - abs(exp(log1p(abs(s)))) + abs(log(s**2))/9",
        lambda s, i, j, h, x: (
            (1 + s.exp()) ** 0.25 + 2 ** s.sigmoid() - 1 - s.abs() + (s**2).log().abs() / 9
        ),
        {},
    ),
    "functions of numbers": (
        "s*softplus(1) - s*sigmoid(-2)*log1p(0.5) + s*relu(-3) + silu(2)*relu(2)",
        lambda s, i, j, h, x: (
            s * 1.3132616875182228 - s * 0.11920292202211755 * 0.4054651081081644
            + 2 * 2 * 0.8807970779778823
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_a_score_and_its_gradients_are_those_that_torch_takes(name):
    text, score, drawn = SCORES[name]
    axes = {"u": ("b", "t", "h"), "a": ("h",), "z": ("h",)}
    lines = ['[kinked]\nfeature_map = "softmax"\nscale = "rsqrt(d)"\nmask = "causal"']
    lines.append(f'score = "{text}"')
    for tensor in drawn:
        shape = ", ".join(f'"{axis}"' for axis in axes[tensor])
        lines.append(f"inputs.{tensor} = {{ shape = [{shape}], grad = true }}")
    op = compile_op(loads("\n".join(lines))["kinked"])
    sizes, wide = {"b": 2, "t": 21, "h": 3}, {"dtype": torch.float64}
    q, k, v = (torch.randn(2, 21, 3, 16, requires_grad=True, **wide) for _ in range(3))
    given = {
        tensor: draw(*(sizes[axis] for axis in axes[tensor]), **wide).requires_grad_()
        for tensor, draw in drawn.items()
    }

    token = torch.arange(21, **wide)
    i, j, h = token[:, None], token[None, :], torch.arange(3)[:, None, None]
    s = torch.einsum("bihk,bjhk->bhij", q, k) / 4
    scores = score(s, i, j, h, given).masked_fill(j > i, -torch.inf)
    expected = scores.softmax(-1) @ v.transpose(1, 2)
    expected = (expected.transpose(1, 2), scores.logsumexp(-1))

    inputs = [q, k, v, *given.values()]
    found = op(q, k, v, return_lse=True, **given)
    incoming = [torch.randn_like(x) for x in expected]
    for result, wanted in zip(
        (*found, *torch.autograd.grad(found, inputs, incoming)),
        (*expected, *torch.autograd.grad(expected, inputs, incoming)),
        strict=True,
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)


def test_a_relu_gives_no_gradient_at_0_and_a_maximum_half():
    for function, share in (("relu(v)", 0.0), ("max(v, 0)", 0.5), ("abs(v)", 0.0)):
        op = compile_op(
            loads(f'[kinked]\nfeature_map = "softmax"\nscale = 1.0\nvalue = "{function}"')["kinked"]
        )
        q = torch.randn(1, 5, 1, 16)
        v = torch.zeros(1, 5, 1, 16, requires_grad=True)
        op(q, q, v).sum().backward()
        weights = (q[0, :, 0] @ q[0, :, 0].T).softmax(-1).sum(0)
        torch.testing.assert_close(v.grad[0, :, 0], share * weights[:, None].expand(5, 16))
