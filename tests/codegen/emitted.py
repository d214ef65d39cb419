"""Which plans the tests of the emitted text look at: every shipped variant, form and shape."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

from attnc.codegen.plan import Plan
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import attentions

# whose features are monomials: more channels of k fill no state
DIMS = dict.fromkeys(("based", "rebased", "window_taylor"), ((16, 64), (16, 48)))
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

[hybrid]
params.mix = { shape = ["h"], grad = true }
params.z = { shape = ["h"], grad = true }
terms = [
  { feature_map = "softmax", mask = "causal & window(63)", scale = "rsqrt(d)", score = "s - 0.1*(i - j)" },
  { feature_map = "elu(x) + 1", mask = "i - j >= 64", scale = 0.125, factor = "exp(mix[h])" },
]
sink = "z[h]"

# derivatives that need less than what they are derived from
[halved]
feature_map = "0.5*s - 1"
scale = 1.0
log_decay = "-0.1 / (1 + h)"
mask = "causal"
normalize = "none"

[offered]
feature_map = "identity"
scale = 1.0
value = "v + gain[c]"
log_decay = "-rate - g[b,t,h]**2"
mask = "causal & window(20)"
normalize = "none"
params.gain = { shape = ["c"], grad = true }
params.rate = { shape = [], grad = true }
inputs.g = { shape = ["b", "t", "h"], grad = true }

# a union too long for a line, and another whose lists of blocks read one end of each block
[listed]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "(window(37, 11) & (2*i - j >= -4) | prefix(n[b])) & blocks(kept, 64)"
inputs.n = { shape = ["b"] }
inputs.kept = { shape = ["i/64", "j/64"] }

[listed_prefix]
feature_map = "softmax"
scale = "rsqrt(d)"
mask = "prefix(20) & blocks(kept, 64)"
inputs.kept = { shape = ["i/64", "j/64"] }
"""  # noqa: E501
)


def all_variants() -> dict[str, Variant]:
    """Those shipped of q, k and v, each meaning once, and what none of them shows."""
    once = {variant.digest: variant for variant in reversed(attentions().values())}
    return {variant.name: variant for variant in (*reversed(once.values()), *DRAWN.values())}


@cache
def requests() -> dict[str, tuple[Op, dict[str, Any]]]:
    """By label, what is planned: variants, dims, bf16 and fp32, forms, with a state or not."""
    found = {}
    for name, variant in all_variants().items():
        op = compile_op(variant, backend="triton")
        for place, dims in enumerate(DIMS.get(name, ((64, 64), (80, 48)))):
            for dtype, form in product(("bf16", "fp32"), op.forms()):
                label = f"{name}_{form}_{dims[0]}_{dims[1]}_{dtype}"
                asked = {"dim": dims, "dtype": dtype, "form": form}
                states = form == "chunked" and not variant.has_lse
                found[label] = op, asked
                if states:
                    found[f"{label}_state"] = op, asked | {"stateful": True}
                if place == (dtype == "fp32"):
                    stateful = states and dtype == "fp32"
                    found[f"{label}_backward"] = (
                        op,
                        asked | {"stateful": stateful, "backward": True},
                    )
    return found


@cache
def plan_of(label: str) -> Plan:
    """The plan of one label, made once a process."""
    op, asked = requests()[label]
    return op.plan(**asked)
