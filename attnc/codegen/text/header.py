"""The header of an emitted module: variant, plan, and the command that emits it again."""

from __future__ import annotations

from attnc.codegen.device import DEVICES
from attnc.codegen.plan import SCALED_OUT, Plan
from attnc.codegen.planning.backend import has_choice


def header(plan: Plan) -> tuple[str, ...]:
    """What the docstring of an emitted module says below its title."""
    variant = plan.variant
    budget = plan.device.sram_bytes
    lines = (
        f"variant     {variant.summary}",
        f"dims        {_dims(plan)}{plan.dtype} in, {plan.acc} accumulators"
        + (f", {plan.result} out" if plan.result != plan.dtype else ""),
        *(f"plan        {step}" for step in plan.passes),
        f"sram        {plan.sram_bytes} of {budget} bytes ({plan.device.name})",
        f"digest      {plan.digest}",
        f"regenerate  {_command(plan)}",
    )
    return tuple(piece for line in lines for piece in _wrap(line))


def _dims(plan: Plan) -> str:
    """The head dims; a convolution has none."""
    return "" if plan.algebra.family == "conv" else f"K={plan.dims[0]} V={plan.dims[1]}, "


def _command(plan: Plan) -> str:
    """The command line that emits this text again."""
    work = plan.workload
    parts = [
        f"attnc emit {plan.variant.name}",
        f"--dtype {plan.dtype} --device {plan.device.name}",
        f"--form {plan.form}" if not plan.decode else f"--decode {_cache(plan)}".rstrip(),
        f"--shape {work.batch},{work.tk if plan.decode else work.tq}",
    ]
    if plan.algebra.family == "conv":
        parts[3] += f",{work.hq}"
    else:
        parts[0] += f" --dim {plan.dims[0]},{plan.dims[1]}"
        parts.append(f"--heads {work.hq},{work.hkv}")
    if has_choice(plan):
        parts.append(f"--backend {plan.backend}")
    if plan.stateful:
        parts.append("--stateful")
    if plan.result not in {plan.dtype, SCALED_OUT}:
        parts.append(f"--out {plan.result}")
    if plan.phase == "backward":
        parts.append("--backward")
    if not plan.deterministic:
        parts.append("--no-deterministic")
    known = DEVICES.get(plan.device.name)
    if known is not None and known.sram_bytes != plan.device.sram_bytes:
        parts.append(f"--sram {plan.device.sram_bytes}")
    return " ".join(parts)


def _cache(plan: Plan) -> str:
    return f"--cache {plan.cache}" if plan.cache else ""


def _wrap(line: str) -> tuple[str, ...]:
    if len(line) <= 96:
        return (line,)
    cut = line.rfind(" ", 0, 96)
    return (line[:cut], *_wrap(" " * 12 + line[cut + 1 :]))
