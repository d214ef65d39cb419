"""Gradients of q and k through the feature maps: one sum a map, joined at the end."""

from __future__ import annotations

from attnc.codegen.graph import GraphBuilder
from attnc.codegen.kernels.gradient.facts import GradientFacts
from attnc.codegen.kernels.terms import Part


def gradient_buffers(parts: tuple[Part, ...], plain: str) -> tuple[str, ...]:
    """`b_dq` or `b_dk`, then the sums of what comes back through each feature map."""
    names = (part.query.replace("b_q", plain) for part in parts)
    return tuple(dict.fromkeys((plain, *names)))


def chain(
    builder: GraphBuilder,
    facts: GradientFacts,
    region: str,
    shape: tuple[str, str],
    gradient: str,
    raw: str,
    *,
    into: str = "",
) -> None:
    """Through the feature map, times phi'(x) at the raw channels, and into the sum of all terms."""
    slope = facts.derivation.phi_slope
    assert slope is not None
    bound = facts.printer.bound({"x": f"{raw}c"})
    lines = (f"{raw}c = {raw}.to(ACC)", *bound.statements(f"{raw}s", slope))
    builder.map(
        gradient, region, shape, *lines, f"{gradient} = {gradient} * {raw}s",
        name=f"phi' {gradient}", reads=(gradient, raw), note="through phi",
    )  # fmt: skip
    if into not in {"", gradient}:
        line = f"{into} = {into} + {gradient}"
        builder.map(into, region, shape, line, name=f"join {gradient}", reads=(into, gradient))
