"""Which plan a decode step runs: planned and built once a kind of step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch

from attnc.codegen.device import Device
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.ops.built import Built, store_plan
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.placement import planner_device


class DecodePlans:
    """The decode plans of one op; `request` says what an op asks a plan for."""

    def __init__(self, request: Callable[..., Request], device: Device | None) -> None:
        self._request, self._device = request, device
        self._built: dict[Hashable, Built] = {}
        self._same: dict[str, Built] = {}

    def find(
        self,
        q: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        workload: Workload,
        precision: str,
        cache: str = "",
    ) -> Built:
        """The plan for a step of q [B, 1, HQ, K], v [B, 1, HKV, V]; `cache` is how keys lie.

        Raises:
            PlanError: no tile holds it, or the variant has no decode.
        """
        types = tuple(tensor.dtype for tensor in tensors)
        dims = (q.shape[-1], v.shape[-1])
        asked = (dims, q.dtype, types, q.device, workload, precision, cache)
        found = self._built.get(asked)
        if found is None:
            device = self._device or planner_device(q.device)
            request = self._request(
                dims, DTYPE_NAMES[q.dtype], None, False, precision=precision, device=device,
                workload=workload,
            )  # fmt: skip
            ranked = plans(replace(of_phase(request, "decode"), cache=cache))
            found = self._keep(ranked, str((types, q.device)))
            self._built[asked] = found
        return found

    def _keep(self, ranked: Sequence[Plan], kind: str) -> Built:
        """Workloads that lead to one plan share what was built of it."""
        key = f"{ranked[0].digest} {kind}"
        if key not in self._same:
            self._same[key] = Built(ranked, 0, store_plan(ranked[0]))
        return self._same[key]
