"""A state of monomials, or all pairs at once: each call's length decides, and both are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnc.cli.facts import Facts
from attnc.codegen.algebra import analyse
from attnc.codegen.planning.form_choice import choose_form
from attnc.dsl.toml_file import loads
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped

DRAWN = loads(
    """
[affine]
feature_map = "1 + s"
scale = 0.05
mask = "causal"
normalize = "sum"

[summed]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
normalize = "sum"

[faded]
feature_map = "taylor(2)"
scale = "rsqrt(d)"
mask = "causal"
normalize = "none"
log_decay = "-0.1"
"""
)
VARIANTS = {**shipped(), **DRAWN}


def form(name, tokens, *, backward=False, dim=None, **changes):
    request = Facts(dim=dim, heads="16,16", shape=f"8,{tokens}", backward=backward)
    variant = VARIANTS[name]
    request = replace(request.request(variant), **changes)
    return choose_form(request, analyse(request.variant))[0]


def test_short_sequences_of_based_go_by_pairs_and_their_backward_longer():
    assert [form("based", n) for n in (64, 1024, 1536)] == ["parallel"] * 3
    assert [form("based", n) for n in (2048, 65536)] == ["chunked"] * 2
    assert [form("based", n, backward=True) for n in (64, 2048)] == ["parallel"] * 2
    assert [form("based", n, backward=True) for n in (4096, 65536)] == ["chunked"] * 2


@pytest.mark.parametrize("name", ["linear", "lightning", "mamba2", "gla", "faded", "summed"])
def test_what_keeps_channels_themselves_or_fades_or_sums_all_stays_with_its_state(name):
    assert form(name, 64, dim="16,64" if name in DRAWN else None) == "chunked"


def test_a_state_that_goes_on_sequences_and_packages_stay_with_theirs():
    assert form("based", 64, stateful=True) == "chunked"
    assert form("based", 64, launcher="packaged") == "chunked"
    packed = compile_op(VARIANTS["based"]).over_sequences().variant
    assert form("based", 64, variant=packed) == "chunked"


def test_the_reason_counts_the_products_of_both():
    request = Facts(heads="16,16", shape="32,1024").request(VARIANTS["based"])
    assert choose_form(request, analyse(request.variant)) == (
        "parallel",
        "all pairs take 42.4 GFLOP, a state of monomials 37.6, and a GFLOP of that takes longer",
    )


@pytest.mark.parametrize("tokens", [70, 700, 2000])
def test_a_call_is_the_formula_on_either_side_of_each_length(tokens):
    """At 700 tokens the forward keeps a state and the backward takes what it stored by pairs."""
    chosen = [form("affine", tokens, backward=b, dim="16,16") for b in (False, True)]
    expected = {70: ["parallel"] * 2, 700: ["chunked", "parallel"], 2000: ["chunked"] * 2}
    assert chosen == expected[tokens]
    op = compile_op(VARIANTS["affine"])
    q, k, v, do = torch.randn(4, 1, tokens, 1, 16)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = op(*leaves)
    found = torch.autograd.grad(out, leaves, do)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    s = 0.05 * torch.einsum("bihk,bjhk->bhij", wide[0], wide[1])
    w = (1 + s) * torch.ones(tokens, tokens).tril()
    ref = torch.einsum("bhij,bjhv->bihv", w / w.sum(-1, keepdim=True), wide[2])
    expected = torch.autograd.grad(ref, wide, do.double())
    for own, other in zip((out, *found), (ref, *expected), strict=True):
        assert (own - other).norm() < 1e-4 * other.norm()
