"""An oracle for one head of any length: the recurrence in fp64, features spelled out.

It shares nothing with the kernels or with the package's reference: monomials are the full outer
product, decays are summed token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 256


def _features(name: str, x: Tensor, dim: int) -> Tensor:
    if name == "based":
        y = x / dim**0.25
        pairs = (y[:, :, None] * y[:, None, :]).flatten(1) / 2**0.5
        return torch.cat((torch.ones_like(y[:, :1]), y, pairs), 1)
    if name in {"linear", "elu", "elu_sum"}:
        return torch.nn.functional.elu(x) + 1
    if name == "relu2":
        return torch.relu(x) ** 2
    return x


def one_head(
    name: str, q: Tensor, k: Tensor, v: Tensor, declared: dict[str, Tensor], place: tuple[int, int]
) -> Tensor:
    """o [T, V] of one batch and head, from q, k [T, K] and v [T, V] in fp64."""
    batch, head = place
    tokens, dim = q.shape
    log_decay = torch.zeros(tokens, dtype=torch.float64, device=q.device)
    if "slope" in declared:
        log_decay = log_decay - declared["slope"][head].double()
    if "g" in declared:
        log_decay = log_decay - declared["g"][batch, :, head].double() ** 2
    summed = name in {"based", "linear", "elu_sum"}
    if summed:
        v = torch.cat((v, torch.ones_like(v[:, :1])), 1)
    fq, fk = _features(name, q, dim), _features(name, k, dim)
    state = torch.zeros(fk.shape[1], v.shape[1], dtype=torch.float64, device=q.device)
    rows = []
    for start in range(0, tokens, _CHUNK):
        cut = slice(start, start + _CHUNK)
        a, b, c = fq[cut], fk[cut], v[cut]
        through = log_decay[cut].cumsum(0)
        seen = torch.ones(len(a), len(a), dtype=torch.bool, device=q.device).tril()
        apart = (through[:, None] - through[None, :]).masked_fill(~seen, 0.0)
        weights = (a @ b.T * apart.exp()).masked_fill(~seen, 0.0)
        rows.append(weights @ c + through.exp()[:, None] * (a @ state))
        to_end = (through[-1] - through).exp()[:, None]
        state = through[-1].exp() * state + (b * to_end).T @ c
    o = torch.cat(rows)
    return o[:, :-1] / o[:, -1:] if summed else o


def errors(
    case_name: str,
    tensors: list[Tensor],
    declared: dict[str, Tensor],
    found: dict[str, Tensor],
) -> dict[str, float]:
    """Relative error of o, dq, dk and dv, where found, at one batch and head drawn at random."""
    q, k, v, do = tensors
    batch = int(torch.randint(q.shape[0], ()))
    head = int(torch.randint(q.shape[2], ()))
    leaves = [x[batch, :, head].double().requires_grad_() for x in (q, k, v)]
    o = one_head(case_name, *leaves, declared, (batch, head))
    truth = {"o": o.detach()}
    if "dq" in found:
        grads = torch.autograd.grad(o, leaves, do[batch, :, head].double())
        truth |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
    off = {}
    for name, value in found.items():
        mine = value[batch, :, head].double()
        off[name] = float((mine - truth[name]).norm() / truth[name].norm())
        if not bool(value.isfinite().all()):
            off[name] = float("nan")
    return off
