"""What comes of `deterministic=False`: where there is a fused way, and why there is none elsewhere.

Nobody gets other kernels than asked for in silence: the plan says which it has.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.plan import Plan, Request

ALLOWED = "sums of dq in any order are allowed"
FUSED_WAY = f"{ALLOWED}, and there is a fused way"


def no_fused_way(why: str) -> str:
    """What a plan says that has none."""
    return f"{ALLOWED}, and there is no fused way: {why}"


def with_order_told(ranked: tuple[Plan, ...], request: Request) -> tuple[Plan, ...]:
    """The plans of a request, each with what came of allowing sums in any order."""
    if request.deterministic:
        return ranked
    return tuple(
        replace(
            item,
            order_reason=item.order_reason or no_fused_way(_why(item)),
            otherwise=with_order_told(item.otherwise, request),
        )
        for item in ranked
    )


def _why(plan: Plan) -> str:
    if plan.phase != "backward":
        return f"a {plan.phase} has no dq"
    if plan.algebra.family != "softmax":
        return f"the {plan.algebra.family} family has its gradients of passes without atomics alone"
    return "the triton backend has none, since one was slower there than two passes on an H100"
