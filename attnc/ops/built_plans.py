"""Which plan a call runs: chosen once a shape, tuned where it was, built once a kind of call.

Where the planner chooses gluon there are two: its own, and triton's for the calls whose tensors
the copy engine cannot read. Each has the answers that tuning found for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch

from attnc.codegen.algebra import analyse
from attnc.codegen.device import Device
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planning.backend import choose_backend, of_phase
from attnc.codegen.planning.choice import Bucket, Choice, choice_of
from attnc.codegen.planning.form_choice import choose_form
from attnc.codegen.planning.planner import plans
from attnc.ops.built import Built, Key, store_plan
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.placement import launcher_on, planner_device
from attnc.ops.tuning.tuned import generation, tuned_plan

# shapes whose choice is remembered an op: lengths that never repeat would fill memory
_MOST = 1024


class BuiltPlans:
    """The plans of one op, by kind of call; `request` says what an op asks a plan for."""

    def __init__(self, request: Callable[..., Request], device: Device | None) -> None:
        self._request, self._device = request, device
        self._ranked: dict[Key, tuple[Plan, ...]] = {}
        self._chosen: dict[Hashable, Built] = {}
        self.by_kind: dict[tuple[Key, Choice], Built] = {}
        # plans that come first whatever their rank: what holds them against the formula says so
        self.first: Callable[[Plan], bool] | None = None

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
        batch, tq, hq, _ = q.shape
        work = Workload(batch, tq, k.shape[1], hq, k.shape[2])
        dims = (q.shape[-1], v.shape[-1])
        types = tuple(tensor.dtype for tensor in tensors)
        asked = (
            dims, q.dtype, types, form, stateful, precision, q.device, wanted, work, generation(),
            torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        found = self._chosen.get(asked)
        if found is None:
            found = self._choose(q, dims, types, form, stateful, precision, wanted, work)
            if len(self._chosen) >= _MOST:
                self._chosen.clear()
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
        work: Workload,
    ) -> Built:
        device = self._device or planner_device(q.device)
        phase = "forward" if wanted is None else "backward"
        dtype = DTYPE_NAMES[q.dtype]
        request = self._request(dims, dtype, form, stateful, precision=precision, device=device)
        request = replace(of_phase(request, phase, wanted), launcher=launcher_on(q.device))
        # who asks PyTorch for the same bits in every run means this too
        same_bits = request.deterministic or torch.are_deterministic_algorithms_enabled()
        request = replace(request, deterministic=same_bits)
        # this shape says which backend and form; tiles are ranked for one shape, tuned by bucket
        call, algebra = replace(request, workload=work), analyse(request.variant)
        backend, found = choose_backend(call, algebra), choose_form(call, algebra)
        key = Key(
            dims, dtype, form, stateful, precision, device, phase, wanted or (), types,
            backend.name, found[0], same_bits,
        )  # fmt: skip
        ranked = self._ranked.get(key)
        if ranked is None:
            ranked = plans(request, backend, found)
            if self.first is not None:
                named = [item for item in ranked if self.first(item)]
                ranked = (*named, *(item for item in ranked if not self.first(item)))
            self._ranked[key] = ranked
        return self._build(key, ranked, q.device, Bucket.of(work.batch, work.hq, work.tq, work.tk))

    def _build(
        self, key: Key, ranked: Sequence[Plan], device: torch.device, bucket: Bucket
    ) -> Built:
        tuned = tuned_plan(ranked, device, bucket)
        order = ranked if tuned is None else (tuned, *ranked)
        chosen = () if tuned is None else choice_of(tuned)
        otherwise = None
        if ranked[0].otherwise:
            portable = replace(key, backend="triton")
            otherwise = self._build(portable, ranked[0].otherwise, device, bucket)
            # a card whose compiler refuses all of the first has these
            order = (*order, *otherwise.plans)
            chosen = (*chosen, *choice_of(otherwise.plans[0]))
        built = self.by_kind.get((key, chosen))
        if built is None:
            built = Built(order, 0, store_plan(order[0]), otherwise=otherwise)
            self.by_kind[key, chosen] = built
        return built
