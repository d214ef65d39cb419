"""The constant tables of monomial features, as numbers for the launcher to build them from."""

from __future__ import annotations

from math import factorial

from attnc.codegen.expression.printer import number
from attnc.codegen.plan import Plan


def feature_tables(plan: Plan) -> dict[str, object] | None:
    """What the launcher's tables of monomials are made from; None where there are none."""
    features = plan.features
    if features is None or features.direct:
        return None
    number_of_term = plan.algebra.folded
    variant = plan.variant if number_of_term is None else plan.variant.terms[number_of_term]
    scale = variant.scale.value(plan.dims[0])
    factors = {degree: float(c) * scale**degree for degree, c, _ in features.degrees}
    degrees = ", ".join(
        f"({degree}, {number(factor)})" for degree, factor in factors.items() if degree
    )
    single = sum(1 for degree in factors if degree) == 1
    return {
        "order": features.order,
        "padded": features.padded_count,
        "count": features.count,
        "head_dim": plan.dims[0],
        "factorials": str([factorial(n) for n in range(features.order + 1)]),
        "degrees": f"({degrees},)" if single else f"({degrees})",
        "constant": number(factors[0]) if 0 in factors else None,
    }
