"""Which plan a call runs: ranked once a kind of call, tuned where it was, built once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from attnc.codegen.backend import of_phase
from attnc.codegen.choice import Bucket, Choice, choice_of
from attnc.codegen.device import Device
from attnc.codegen.plan import Plan, Request
from attnc.codegen.planner import plans
from attnc.ops.built import Built, Key, store_plan
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.placement import planner_device
from attnc.ops.tuned import generation, tuned_plan


class BuiltPlans:
    """The plans of one op, by kind of call; `request` says what an op asks a plan for."""

    def __init__(self, request: Callable[..., Request], device: Device | None) -> None:
        self._request, self._device = request, device
        self._ranked: dict[Key, tuple[Plan, ...]] = {}
        self._chosen: dict[Hashable, Built] = {}
        self.by_kind: dict[tuple[Key, Choice], Built] = {}

    def find(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        form: str | None,
        precision: str,
        *,
        stateful: bool,
        wanted: tuple[str, ...] | None = None,
    ) -> Built:
        """The plan for a call, what tuning chose first; `wanted` asks for a backward.

        Raises:
            PlanError: no tile fits, or the form is not legal.
        """
        bucket = Bucket.of(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        dims = (q.shape[-1], v.shape[-1])
        types = tuple(tensor.dtype for tensor in tensors)
        asked = (
            dims, q.dtype, types, form, stateful, precision, q.device, wanted, bucket, generation(),
        )  # fmt: skip
        found = self._chosen.get(asked)
        if found is None:
            found = self._choose(q, dims, types, form, stateful, precision, wanted, bucket)
            self._chosen[asked] = found
        return found

    def _choose(
        self,
        q: torch.Tensor,
        dims: tuple[int, int],
        types: tuple[torch.dtype, ...],
        form: str | None,
        stateful: bool,
        precision: str,
        wanted: tuple[str, ...] | None,
        bucket: Bucket,
    ) -> Built:
        device = self._device or planner_device(q.device)
        phase = "forward" if wanted is None else "backward"
        dtype = DTYPE_NAMES[q.dtype]
        key = Key(dims, dtype, form, stateful, precision, device, phase, wanted or (), types)
        ranked = self._ranked.get(key)
        if ranked is None:
            request = self._request(
                dims, key.dtype, form, stateful, precision=precision, device=device
            )
            ranked = plans(of_phase(request, phase, wanted))
            self._ranked[key] = ranked
        tuned = tuned_plan(ranked, q.device, bucket)
        found = (key, () if tuned is None else choice_of(tuned))
        built = self.by_kind.get(found)
        if built is None:
            order = ranked if tuned is None else (tuned, *ranked)
            built = Built(order, 0, store_plan(order[0]))
            self.by_kind[found] = built
        return built
