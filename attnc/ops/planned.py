"""What an op says before tensors exist: its plans, its emitted text, every stage explained."""

from __future__ import annotations

from attnc.codegen.device import DEVICES, Device
from attnc.codegen.dtype import check_dtype_name
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.codegen.text.explain import explain
from attnc.codegen.text.render import render
from attnc.dsl.scales import of_dtype
from attnc.dsl.variant import Variant
from attnc.ops.options import PRECISIONS, check_form_name


class Planned:
    """A variant with its device and its backend; None leaves either to each call.

    `out` is the type of the output of 8-bit tensors, by its short name; empty for the usual one.
    """

    def __init__(
        self,
        variant: Variant,
        device: Device | None,
        backend: str | None,
        out: str = "",
        *,
        deterministic: bool = True,
    ) -> None:
        self.variant, self._device, self._backend, self._out = variant, device, backend, out
        self._deterministic = deterministic

    def plan(
        self,
        *,
        dim: tuple[int, int] | None = None,
        dtype: str = "bf16",
        form: str | None = None,
        stateful: bool = False,
        backward: bool = False,
        workload: Workload | None = None,
    ) -> Plan:
        """The first-ranked plan at head dims (K, V), from the declaration where not given."""
        request = self.request(dim, dtype, form, stateful, workload=workload)
        phase = "backward" if backward else "forward"
        return plans(of_phase(request, phase))[0]

    def explain(
        self,
        *,
        dim: tuple[int, int] | None = None,
        dtype: str = "bf16",
        backward: bool = False,
    ) -> str:
        """Every stage as text: the variant, its algebra, what is derived, the graph, the plan."""
        return explain(self.plan(dim=dim, dtype=dtype, backward=backward))

    def source(
        self,
        *,
        dim: tuple[int, int] | None = None,
        dtype: str = "bf16",
        form: str | None = None,
        stateful: bool = False,
        backward: bool = False,
    ) -> str:
        """The emitted module's text."""
        plan = self.plan(dim=dim, dtype=dtype, form=form, stateful=stateful, backward=backward)
        return render(plan)

    def request(
        self,
        dim: tuple[int, int] | None,
        dtype: str,
        form: str | None,
        stateful: bool,
        *,
        precision: str = "fp32",
        device: Device | None = None,
        workload: Workload | None = None,
    ) -> Request:
        """What a plan is asked for; the declaration's dims and the op's device where not given."""
        check_dtype_name(dtype)
        check_form_name(form)
        declared = self.variant.dim
        fallback = (declared.qk, declared.v) if declared is not None else (64, 64)
        return Request(
            variant=of_dtype(self.variant, dtype),
            device=device or self._device or DEVICES["h100"],
            dims=dim or fallback,
            dtype=dtype,
            form=form,
            stateful=stateful,
            precision=PRECISIONS[precision],
            workload=workload or Workload(),
            backend=self._backend,
            out=self._out,
            deterministic=self._deterministic,
        )
