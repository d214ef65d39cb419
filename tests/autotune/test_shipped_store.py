"""The tuned store in the package: every answer is for a kernel that there is, with legal tiles."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.resources import files

import pytest

from attnc.autotune.tuning_store import TuningStore
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import BACKENDS, Plan
from attnc.codegen.planning.choice import chosen, kernel_key
from attnc.codegen.planning.planner import plans
from attnc.errors import PlanError
from attnc.ops.op import compile as compile_op
from attnc.ops.placement import planner_name
from attnc.ops.shipped import shipped

FOLDER = files("attnc") / "autotune" / "tuned"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".json"))


@cache
def kernels(
    name: str, device: str, dims: tuple[int, int], dtype: str
) -> dict[str, tuple[Plan, ...]]:
    """The ranked plans of a shipped variant, forward and backward, of each backend, by key."""
    found = {}
    for variant in filter(None, [shipped().get(name)]):
        op = compile_op(variant)
        base = op.request(dims, dtype, None, False, device=DEVICES[device])
        grads = tuple(t.name for t in (*variant.params, *variant.inputs) if t.grad)
        phases = [base, *(replace(base, phase="backward", wanted=w) for w in ((), grads))]
        requests = [replace(asked, backend=name) for name in BACKENDS for asked in phases]
        for request in requests:
            with suppress(PlanError):  # what gluon does not take
                ranked = plans(request)
                found[kernel_key(ranked[0])] = ranked
    return found


def test_a_store_ships():
    assert FILES


@pytest.mark.parametrize("name", FILES)
def test_every_answer_is_for_a_current_kernel_and_a_legal_plan(name):
    """Fails when a change to the planner or to a variant's meaning makes an answer stale."""
    model = json.loads((FOLDER / name).read_text(encoding="utf-8"))["device"]
    answers = TuningStore().read(model)
    assert answers
    stale = [
        f"{answer.variant} {answer.phase} {answer.dims} {answer.bucket}: {why}"
        for answer in answers.values()
        if (why := _stale(planner_name(model), answer))
    ]
    assert not stale


def _stale(device, answer):
    ranked = kernels(answer.variant, device, answer.dims, answer.dtype).get(answer.kernel)
    if ranked is None:
        return "no kernel has its key"
    return "" if chosen(ranked, answer.choice) else f"no plan has {answer.choice}"


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_found_by_its_devices_name(name):
    model = json.loads((FOLDER / name).read_text(encoding="utf-8"))["device"]
    assert TuningStore().path(model).name == name
