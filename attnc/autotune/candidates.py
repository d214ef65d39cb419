"""Candidates that nobody chose: variants, head dims, forms and tiles, drawn from a seed.

Only passes that multiply are candidates: one that holds no tile takes no SRAM worth a row. All are
of the triton backend, whose compiler's SRAM the planner predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from attnc.codegen.algebra import analyse
from attnc.codegen.device import device_named
from attnc.codegen.kernel_spec import KernelSpec
from attnc.codegen.plan import PassPlan, Plan, Request
from attnc.codegen.planning.planner import plans
from attnc.codegen.signature import kernel_specs
from attnc.dsl.scales import of_dtype
from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.errors import AttncError

# every candidate counts, whether it fits a device or not
_NO_BUDGET = 1 << 30
_HEAD_DIMS = (64, 128)
# a state of monomials fits a program at few channels only
_MONOMIAL_DIM = 16

_SCORES = (
    "softcap({}, 7)",
    "({} - slope[h]*(i - j))",
    "({} - slope[h]*abs(i - j))",
    "({} + u[b,i,h] - u[b,j,h])",
    "({} - y[j])",
    "({} + rel[h,i,j])",
    "({}*gain)",
    "where(i - j < 9, {}, 0.5*s)",
    "(2*tanh({}))",
    "log1p(abs({}))",
)
_MASKS = (
    "causal",
    "full",
    "window(100)",
    "window(64, 64)",
    "prefix(300)",
    "causal & ~window(33)",
    "causal | prefix(77)",
)
_NONNEGATIVE = ("taylor(2)", "1 + s + s**2/2", "elu(x) + 1", "relu(x)**2", "exp(x)", "s**2 + 0.1")
_SIGNED = ("identity", "3*s", "taylor(1)", "s - s**2", "silu(x)", "tanh(x)")
_DECAYS = (
    "-0.05",
    "-slope[h]",
    "log1p(-2**(-5-h))",
    "-g[b,t,h]",
    "-softplus(g[b,t,h])",
    "-gt[b,t]",
)
_DECLARED = {
    "params": {"slope": ("h",), "gain": ()},
    "inputs": {
        "u": ("b", "t", "h"),
        "y": ("b", "t"),
        "rel": ("h", "i", "j"),
        "g": ("b", "t", "h"),
        "gt": ("b", "t"),
    },
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One pass of a drawn plan, and what the compiler needs to know of it."""

    plan: Plan
    step: PassPlan
    kernel: KernelSpec


def draw_candidates(device: str, dtype: str, *, count: int, seed: int) -> list[Candidate]:
    """At least `count` candidates: a variant, its form, its dims, then any plan of them all."""
    random = Random(f"{seed} {device} {dtype}")
    found: list[Candidate] = []
    while len(found) < count:
        try:
            request = _draw_request(random, device, dtype)
            plan = random.choice(plans(request))
        except AttncError:
            continue  # a state too large for any tile, say, or 8-bit tensors in the state family
        for step, kernel in zip(plan.passes, kernel_specs(plan), strict=True):
            if any(node.op == "dot" for node in step.kernel.graph.nodes()):
                found.append(Candidate(plan, step, kernel))
    return found


def draw_variant(random: Random) -> Variant:
    """A variant of either family, from pieces of the grammar.

    Raises: AttncError where the pieces do not go together.
    """
    fields = {"scale": random.choice(('"rsqrt(d)"', "1.0", "0.3"))}
    mask, expression = random.choice(_MASKS), ""
    if random.random() < 0.5:
        expression = "s"
        for score in random.sample(_SCORES, random.choice((0, 0, 1, 1, 2))):
            expression = score.format(expression)
        fields |= {"feature_map": '"softmax"', "score": f'"{expression}"'}
    else:
        summed = random.random() < 0.5
        weight = random.choice(_NONNEGATIVE if summed else (*_NONNEGATIVE, *_SIGNED))
        fields |= {"feature_map": f'"{weight}"', "normalize": '"sum"' if summed else '"none"'}
        mask = random.choice(("causal", mask))
        if random.random() < 0.7:
            expression = random.choice(_DECAYS)
            fields["log_decay"] = f'"{expression}"'
            # a decay towards the future would be growth
            mask = mask if mask == "causal" else f"causal & ({mask})"
    fields["mask"] = f'"{mask}"'
    lines = [f"{key} = {value}" for key, value in fields.items()]
    return loads("\n".join(["[drawn]", *lines, *_declarations(expression)]))["drawn"]


def _declarations(expression: str) -> Iterator[str]:
    for kind, declared in _DECLARED.items():
        for name, axes in declared.items():
            if f"{name}[" in expression or (not axes and name in expression):
                shape = ", ".join(f'"{axis}"' for axis in axes)
                yield f"{kind}.{name} = {{ shape = [{shape}] }}"


def _draw_request(random: Random, device: str, dtype: str) -> Request:
    variant = of_dtype(draw_variant(random), dtype)
    algebra = analyse(variant)
    legal = [verdict.form for verdict in algebra.forms if verdict.legal]
    form = random.choice([form for form in legal if form != "recurrent"])
    dim = random.choice(_HEAD_DIMS)
    chunked = form == "chunked"
    return Request(
        variant=variant,
        device=device_named(device).with_sram(_NO_BUDGET),
        dims=(_MONOMIAL_DIM if chunked and not algebra.direct else dim, dim),
        dtype=dtype,
        form=form,
        stateful=chunked and random.random() < 0.2,
        backend="triton",
    )
