"""Which plan tuning chose: read from the store once a process, so that a job sees one answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.codegen.choice import Bucket, chosen, kernel_key
from attnc.codegen.plan import Plan
from attnc.ops.placement import device_model

_generation = [0]


@cache
def _answers(model: str) -> dict[str, Tuned]:
    return TuningStore().read(model)


@cache
def _model(device: torch.device) -> str:
    return device_model(device)


def tuned_plan(ranked: Sequence[Plan], device: torch.device, bucket: Bucket) -> Plan | None:
    """The plan that tuning chose for a device and a bucket; None where it did not, or is stale."""
    answers = _answers(_model(device))
    if not answers:
        return None
    found = answers.get(f"{kernel_key(ranked[0])} {bucket}")
    return None if found is None else chosen(ranked, found.choice)


def generation() -> int:
    """Rises whenever answers may have changed; what was chosen before is to be chosen anew."""
    return _generation[0]


def forget() -> None:
    """Read the store anew at the next call: this process has tuned."""
    _answers.cache_clear()
    _generation[0] += 1
