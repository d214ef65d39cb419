"""Which plans the tests of the emitted text look at: every shipped variant, form and shape."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.plan import Plan
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import attentions

DIMS = {"based": ((16, 64), (16, 48)), "rebased": ((16, 64), (16, 48))}
DRAWN = loads(
    """
[gated]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-softplus(g[b,t,h])"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h"], grad = true }

[gla]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-softplus(g[b,t,h,k])/16"
mask = "causal"
normalize = "none"
inputs.g = { shape = ["b", "t", "h", "k"], grad = true }
"""
)


def all_variants() -> dict[str, Variant]:
    """The shipped ones of q, k and v, each meaning once, gates a token and gates a channel."""
    once = {variant.digest: variant for variant in reversed(attentions().values())}
    return {variant.name: variant for variant in (*reversed(once.values()), *DRAWN.values())}


def all_plans() -> Iterator[tuple[str, Plan]]:
    """A name and a plan for each: variants, dims, bf16 and fp32, forms, with a state or not."""
    for name, variant in all_variants().items():
        op = compile_op(variant, backend="triton")
        for dims in DIMS.get(name, ((64, 64), (80, 48))):
            for dtype in ("bf16", "fp32"):
                for form in op.forms():
                    for stateful in (False, True) if form == "chunked" else (False,):
                        label = f"{name}_{form}_{dims[0]}_{dims[1]}_{dtype}"
                        plan = op.plan(dim=dims, dtype=dtype, form=form, stateful=stateful)
                        yield label + ("_state" if stateful else ""), plan


def backward_plans() -> Iterator[tuple[str, Plan]]:
    """A name and a plan of a backward for each: variants, dims, bf16 and fp32, forms, states."""
    for name, variant in all_variants().items():
        op = compile_op(variant, backend="triton")
        for dims, dtype in zip(DIMS.get(name, ((64, 64), (80, 48))), ("bf16", "fp32"), strict=True):
            for form in op.forms():
                stateful = form == "chunked" and dtype == "fp32"
                label = f"{name}_{form}_{dims[0]}_{dims[1]}_{dtype}_backward"
                plan = op.plan(dim=dims, dtype=dtype, form=form, stateful=stateful, backward=True)
                yield label, plan
