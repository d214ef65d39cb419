"""A plan as JSON: every decision, what it costs, and what the compiler says of it."""

from __future__ import annotations

from dataclasses import asdict

from attnc.autotune.verdict import Compiled
from attnc.cli.fit import Fitted, candidate
from attnc.codegen.plan import PassPlan, Plan


def plan_object(plan: Plan, fitted: Fitted | None) -> dict[str, object]:
    """The whole plan; `compiled` of a pass is null where the compiler was not asked."""
    compiled: tuple[Compiled | None, ...] = (
        (None,) * len(plan.passes) if fitted is None else fitted.compiled
    )
    refused = () if fitted is None else fitted.refused
    return {
        "variant": plan.variant.name,
        "variant_digest": plan.variant.digest,
        "digest": plan.digest,
        "device": plan.device.name,
        "target": plan.device.target,
        "backend": plan.backend,
        "backend_reason": plan.backend_reason,
        "order_reason": plan.order_reason,
        "otherwise": _otherwise_object(plan),
        "family": plan.algebra.family,
        "phase": plan.phase,
        "form": plan.form,
        "form_reason": plan.form_reason,
        "dtype": plan.dtype,
        "dim": {"qk": plan.dims[0], "v": plan.dims[1]},
        "stateful": plan.stateful,
        "features": None if plan.features is None else plan.features.count,
        "workload": asdict(plan.workload),
        "sram_bytes": plan.sram_bytes,
        "budget_bytes": plan.device.sram_bytes,
        "time_us": plan.time_us,
        "passes": [
            _pass_object(step, verdict) for step, verdict in zip(plan.passes, compiled, strict=True)
        ],
        "refused_by_compiler": [asdict(item) for item in refused],
        "rejected": [asdict(item) for item in plan.rejected if item.candidate != candidate(plan)],
    }


def _otherwise_object(plan: Plan) -> dict[str, object] | None:
    """What runs calls that the plan does not take; null where it takes all."""
    if not plan.otherwise:
        return None
    behind = plan.otherwise[0]
    return {
        "backend": behind.backend,
        "backend_reason": behind.backend_reason,
        "digest": behind.digest,
        "candidate": candidate(behind),
    }


def _pass_object(step: PassPlan, compiled: Compiled | None) -> dict[str, object]:
    cost = step.cost
    return {
        "kernel": step.kernel.name,
        "tiles": dict(step.tiles),
        "num_warps": step.num_warps,
        "num_stages": step.num_stages,
        "sram_bytes": cost.sram_bytes,
        "registers": cost.registers,
        "hbm_bytes": cost.hbm_bytes,
        "flops": cost.flops,
        "time_us": cost.time_us,
        "buffers": [asdict(use) for use in cost.buffers],
        "loops": [
            {"start": loop.start, "stop": loop.stop, "note": loop.note, "masked": loop.masked}
            for loop in step.kernel.every_loop
        ],
        "compiled": None if compiled is None else _compiled_object(step, compiled),
    }


def _compiled_object(step: PassPlan, compiled: Compiled) -> dict[str, object]:
    gap = step.cost.sram_bytes - compiled.shared_bytes
    return {
        "target": str(compiled.target),
        "shared_bytes": compiled.shared_bytes,
        "gap_bytes": gap,
        "gap": gap / compiled.shared_bytes if compiled.shared_bytes else None,
        "registers": compiled.registers,
        "spill_store_bytes": compiled.spill_stores,
        "spill_load_bytes": compiled.spill_loads,
    }
