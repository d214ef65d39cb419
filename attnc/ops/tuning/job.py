"""One kernel to tune: which plans are its rivals, and what they are launched with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.ops.convolution import ConvolutionOp, filter_workload
from attnc.ops.op import Op
from attnc.ops.placement import launcher_on, planner_device
from attnc.ops.tuning.filter import filter_facts
from attnc.ops.tuning.inputs import launch_facts
from attnc.ops.verification.convolution import FilterShape
from attnc.ops.verification.draw import Shape, draw_inputs

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Job:
    """A phase of an op at a shape in a dtype; of a convolution the shape is a `FilterShape`."""

    op: Op | ConvolutionOp
    shape: Shape
    dtype: str
    phase: str
    # the declared tensors whose gradients a backward computes
    wanted: tuple[str, ...] = ()

    @property
    def general(self) -> bool:
        """Whether its tensors break what the usual binaries are promised: rows of 16s of tokens."""
        return isinstance(self.op, ConvolutionOp) and self.shape.tq % 16 != 0


def jobs_of(op: Op | ConvolutionOp, shape: Shape, dtype: str, phase: str) -> list[Job]:
    """A backward with and one without the declared tensors' gradients: they are other kernels."""
    grads = tuple(d.name for d in (*op.variant.params, *op.variant.inputs) if d.grad)
    if phase == "forward" or not grads:
        return [Job(op, shape, dtype, phase)]
    return [Job(op, shape, dtype, phase), Job(op, shape, dtype, phase, grads)]


def ranked_plans(job: Job, device: torch.device) -> tuple[Plan, ...]:
    """The legal plans of a job, the fastest by prediction first; of a filter, those of all forms.

    Raises:
        PlanError: no tile fits, or a learned transform takes no sequence of that length.
    """
    shape, op = job.shape, job.op
    if isinstance(op, ConvolutionOp):
        assert isinstance(shape, FilterShape), "a convolution's shape has channels and taps"
        factors = shape.factors if op.variant.filter.learned else None
        work = filter_workload(shape.batch, shape.tq, shape.hq, shape.taps, factors)
        request = op.request(
            None, job.dtype, None, False, workload=work, device=planner_device(device)
        )
        wanted = None if job.phase == "forward" else job.wanted
        return plans(replace(request, phase=job.phase, wanted=wanted))
    work = Workload(shape.batch, shape.tq, shape.tk, shape.hq, shape.hkv)
    form = "parallel" if op.variant.family == "state" and shape.tq != shape.tk else None
    request = op.request(
        (shape.qk, shape.v), job.dtype, form, False, workload=work, device=planner_device(device)
    )
    request = replace(request, launcher=launcher_on(device))
    return plans(of_phase(request, job.phase, job.wanted))


def request_of(job: Job, plan: Plan) -> Request:
    """The request that a plan of a job answers, with the form that it has."""
    return job.op.request(
        plan.dims, plan.dtype, plan.form, plan.stateful, workload=plan.workload, device=plan.device
    )


def save_inputs(job: Job, plan: Plan, device: torch.device, file: Path) -> None:
    """Write the arguments of a launch, what it has to give, and how far it may be from that."""
    dtype = DTYPES[job.dtype]
    generator = torch.Generator().manual_seed(0)
    if isinstance(job.op, ConvolutionOp):
        assert isinstance(job.shape, FilterShape)
        facts = filter_facts(job.op, plan, job.shape, dtype, generator, device)
    else:
        inputs = draw_inputs(job.op.variant, job.shape, dtype, generator, device)
        facts = launch_facts(job.op, plan, job.shape, inputs, dtype)
    torch.save(facts, file)
