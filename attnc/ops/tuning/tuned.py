"""Which plan tuning chose: read from the store once a process, so that a job sees one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch

from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Plan
from attnc.codegen.planning.choice import Bucket, chosen, kernel_key
from attnc.ops.placement import device_model, planner_name
from attnc.ops.ranks import from_rank_zero

_TWINS = {"fp16": "bf16", "bf16": "fp16"}
_generation = [0]
_shared: dict[str, dict[str, Tuned]] = {}


@cache
def _answers(model: str) -> dict[str, Tuned]:
    return TuningStore().read(model)


@cache
def _model(device: torch.device) -> str:
    return device_model(device)


def tuned_plan(ranked: Sequence[Plan], device: torch.device, bucket: Bucket) -> Plan | None:
    """The plan that tuning chose for a device and a bucket, or for the bucket nearest to it.

    None where the kernel was never tuned on such a device, or no plan has the tiles any more.
    """
    model = _model(device)
    answers = _shared[model] if model in _shared else _answers(model)
    return _nearest(ranked, answers, bucket)


def tuned_first(ranked: Sequence[Plan]) -> tuple[Plan, ...]:
    """Ranked plans for building ahead of time: what tuning chose on such a device comes first."""
    device, work = ranked[0].device, ranked[0].workload
    bucket = Bucket.of(work.batch, work.hq, work.tq, work.tk)
    store = TuningStore()
    for model in store.devices():
        if planner_name(model) == device.name and device == DEVICES.get(device.name):
            found = _nearest(ranked, store.read(model), bucket)
            if found is not None:
                return (found, *ranked)
    return tuple(ranked)


def _nearest(ranked: Sequence[Plan], answers: Mapping[str, Tuned], bucket: Bucket) -> Plan | None:
    if not answers:
        return None
    alike = [ranked[0]]
    twin = _TWINS.get(ranked[0].dtype)
    if twin is not None:
        # the same bytes and the same products: where one was tuned, its tiles serve the other
        alike.append(replace(ranked[0], dtype=twin))
    if ranked[0].any_order:
        # tuned without the fused plans, the others are still the best of theirs
        alike += [replace(plan, any_order=False) for plan in alike]
    keys = [kernel_key(plan) for plan in alike]
    found = [[answer for answer in answers.values() if answer.kernel == key] for key in keys]
    mine = next((some for some in found if some), None)
    if mine is None:
        return None
    nearest = min(mine, key=lambda answer: answer.bucket.distance(bucket))
    return chosen(ranked, nearest.choice)


def generation() -> int:
    """Rises whenever answers may have changed; what was chosen before is to be chosen anew."""
    return _generation[0]


def share_tuned(device: torch.device | str = "cuda") -> int:
    """Let all ranks of a distributed job use the answers that rank 0 reads; how many there are.

    Every rank has to call, before its first call of an op. Ranks read their stores when they first
    need them: where one is written in the meantime, or each machine has its own, they would differ.
    """
    model = device_model(torch.device(device))
    answers = from_rank_zero(lambda: TuningStore().read(model))
    _shared[model] = answers
    _generation[0] += 1
    return len(answers)


def forget() -> None:
    """Read the store anew at the next call: this process has tuned."""
    _answers.cache_clear()
    _shared.clear()
    _generation[0] += 1
