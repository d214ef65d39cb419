"""Which calls a backend that was asked for takes: no kernels of another stand in for its own."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.algebra import analyse
from attnc.codegen.gluon.planner import refusal
from attnc.ops.op import Op
from attnc.ops.verification.draw import Shape


def why_not(op: Op, backend: str | None, shape: Shape, name: str, phase: str) -> str:
    """Why the backend takes no such call; empty where it does, or where none was asked for."""
    if backend != "gluon":
        return ""
    asked = op.request((shape.qk, shape.v), name, None, False)
    return refusal(replace(asked, phase=phase), analyse(asked.variant))


def not_fused(op: Op, shape: Shape, name: str) -> str:
    """Why a backward that may sum dq in any order does not; empty where it does, or may not."""
    plan = op.plan(dim=(shape.qk, shape.v), dtype=name, backward=True)
    return "" if plan.any_order else plan.order_reason
