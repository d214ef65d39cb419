"""Every stage of a plan as text: what was declared, what it means, what was decided."""

from __future__ import annotations

from attnc.codegen.plan import PassPlan, Plan
from attnc.codegen.planning.visibility import visible_fraction


def explain(plan: Plan) -> str:
    """The variant, the algebra, the graph and the plan, one after the other."""
    parts = [
        "== variant",
        plan.variant.summary,
        "== algebra",
        str(plan.algebra),
        *(("== derivation", str(plan.derivation)) if plan.derivation is not None else ()),
        "== graph",
        *(str(step.kernel.graph) for step in plan.passes),
        "== plan",
        explain_plan(plan),
    ]
    return "\n".join(parts)


def explain_plan(plan: Plan) -> str:
    """The decisions and their costs, the rejected candidates last."""
    work = plan.workload
    dims, heads = f", K={plan.dims[0]} V={plan.dims[1]}", f"HQ={work.hq} HKV={work.hkv}"
    if plan.algebra.family == "conv":
        dims, heads = "", f"C={work.hq}"
    lines = [
        f"{plan.variant.name} {plan.phase} on {plan.device.name}: {plan.form} form, "
        f"{plan.backend} backend, {plan.dtype}{dims}",
        f"why this form: {plan.form_reason}",
        *([f"why this backend: {plan.backend_reason}"] if plan.backend_reason else []),
        *([f"order of sums: {plan.order_reason}"] if plan.order_reason else []),
        *(f"otherwise: {item}" for item in _otherwise(plan)),
        f"workload: B={work.batch} TQ={work.tq} TK={work.tk} {heads}, "
        f"{visible_fraction(plan.algebra.mask, work.tq, work.tk):.1%} of the pairs visible",
    ]
    if plan.features is not None:
        features = plan.features
        lines.append(
            f"state: {features.count} features in tiles of "
            f"{' + '.join(str(tile.width) for tile in features.tiles)}, V = {plan.dims[1]}, fp32"
        )
    if plan.phase == "backward":
        lines.append(f"kept from the forward: {_kept(plan)}")
    for step in plan.passes:
        lines.extend(_pass_lines(step, plan))
    lines.append(f"roofline: {plan.time_us:.1f} us for all passes")
    shown = plan.rejected[:12]
    if plan.rejected:
        lines.append(f"rejected: {len(plan.rejected)} candidates")
        lines.extend(f"  {item.candidate}: {item.reason}" for item in shown)
        if len(plan.rejected) > len(shown):
            lines.append(f"  ... and {len(plan.rejected) - len(shown)} more (--json lists all)")
    return "\n".join(lines)


def _otherwise(plan: Plan) -> list[str]:
    """The plan of calls that this one does not take, if there are any."""
    return [
        f"{item.backend}, {item.backend_reason}: {'; '.join(map(str, item.passes))}"
        for item in plan.otherwise[:1]
    ]


def _kept(plan: Plan) -> str:
    """What autograd keeps, and for states what recomputing costs against keeping them."""
    rows = {"softmax": "the inputs, o and lse", "sum": "the inputs, o and the sums of weights"}
    text = rows.get(plan.algebra.normalize, "the inputs")
    if plan.features is None:
        return text
    work = plan.workload
    again = [step.cost for step in plan.passes if step.kernel.name in {"state", "scan"}]
    moved = sum(cost.hbm_bytes for cost in again)
    state = plan.features.padded_count * plan.dims[1] * 4 * work.batch * work.hq
    return (
        f"{text}; states are folded again, {moved / 1e6:,.1f} MB of HBM and no memory between the "
        f"passes, where keeping one a segment holds {state / 1e6:,.1f} MB a segment"
    )


def _pass_lines(step: PassPlan, plan: Plan) -> list[str]:
    cost = step.cost
    lines = [
        str(step),
        f"  sram {cost.sram_bytes:,} of {plan.device.sram_bytes:,} B, "
        f"about {cost.registers} registers a thread",
        f"  {cost.hbm_bytes / 1e6:,.1f} MB of HBM, {cost.flops / 1e9:,.2f} GFLOP, "
        f"{cost.time_us:,.1f} us at the roofline",
    ]
    for use in cost.buffers:
        shape = ", ".join(str(side) for side in use.shape)
        times = f" x {use.copies}" if use.copies > 1 else ""
        lines.append(
            f"  {use.name:<10} [{shape}] {use.dtype}{times}: {use.nbytes * use.copies:,} B"
        )
    lines.extend(
        f"  loop {loop.start} .. {loop.stop}: {loop.note}" for loop in step.kernel.every_loop
    )
    return lines
