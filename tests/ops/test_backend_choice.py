"""Which backend a call runs: by its shape and place, and by how its tensors lie.

Tensors of the `meta` device stand in for those of a GPU: they are planned for and never launched.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnc.autotune.tuning_store import Tuned
from attnc.codegen.device import DEVICES
from attnc.codegen.plan import Workload
from attnc.codegen.planning.choice import Bucket, choice_of, kernel_key
from attnc.ops import built as built_module
from attnc.ops import built_plans, launched
from attnc.ops import op as op_module
from attnc.ops.built import Built, launch
from attnc.ops.decode import decode_plans
from attnc.ops.descriptors import describing
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.tuning import tuned
from attnc.ops.tuning.tune import Job, ranked_plans
from attnc.ops.verification.draw import Shape


@pytest.fixture(autouse=True)
def on_an_h100(monkeypatch):
    """Tensors of the meta device lie on an H100 that nobody has tuned on."""
    for module in (built_plans, decode_plans):
        monkeypatch.setattr(module, "planner_device", lambda _: DEVICES["h100"])
    monkeypatch.setattr(tuned, "_model", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(tuned, "_answers", lambda _: {})


def rows(*sizes: int, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, device=device, dtype=dtype)


def find(op: Op, q: torch.Tensor, k: torch.Tensor | None = None, **options) -> Built:
    k = q if k is None else k
    facts = {"stateful": False, **options}
    return op.built_plans.find(q, k, k, [], None, "fp32", **facts)


LONG = (4, 4096, 16, 128)


def test_a_call_runs_gluon_where_its_own_shape_is_long_enough():
    op = compile_op(shipped()["flash"])
    assert find(op, rows(*LONG)).plan.backend == "gluon"
    assert find(op, rows(*LONG, dtype=torch.float16)).plan.backend == "gluon"
    assert find(op, rows(*LONG, dtype=torch.float32)).plan.backend == "triton"
    assert find(op, rows(4, 1024, 16, 64)).plan.backend == "triton"
    assert find(op, rows(4, 200, 16, 128)).plan.backend == "triton"
    assert find(op, rows(4, 1, 16, 128), rows(*LONG)).plan.backend == "triton"


@pytest.mark.parametrize("device", [None, "h100"])
def test_cpu_tensors_run_triton_in_the_interpreter(device):
    op = compile_op(shipped()["flash"], device=device)
    found = find(op, rows(*LONG, device="cpu"))
    assert found.plan.backend == "triton" and found.otherwise is None
    assert found.plan.backend_reason.startswith("not gluon: on a CPU its schedule gains nothing")


def test_a_backend_that_is_asked_for_is_what_runs():
    short = rows(1, 64, 1, 128)
    gluon = find(compile_op(shipped()["flash"], backend="gluon"), short)
    assert gluon.plan.backend == "gluon" and gluon.otherwise is None
    assert find(compile_op(shipped()["flash"], backend="triton"), rows(*LONG)).plan.backend == (
        "triton"
    )


ODD = {
    "channels apart": rows(4, 4096, 16, 256)[..., ::2],
    "rows of odd bytes": rows(4, 4096, 16, 129)[..., :128],
    "an expanded head": rows(4, 4096, 1, 128).expand(-1, -1, 16, -1),
}


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("how", ODD)
def test_a_tensor_without_a_descriptor_runs_tritons_plan_of_the_same_call(which, how):
    op = compile_op(shipped()["flash"])
    good = rows(*LONG)
    found = find(op, good)
    qkv = [good, good, good]
    assert found.taking(*qkv) is found
    qkv[which] = ODD[how]
    other = found.taking(*qkv)
    assert other.plan.backend == "triton"
    assert other.plan.backend_reason == "where the copy engine cannot read q, k or v as they lie"
    assert "@triton.jit" in Path(other.path).read_text(encoding="utf-8")
    # the same call that is forced to triton emits the same module
    forced = find(compile_op(shipped()["flash"], backend="triton"), good)
    assert other.path == forced.path


def stub(ran: list[str], name: str):
    return lambda *tensors: ran.append(name) or tensors[0]


def test_what_is_launched_is_what_takes_the_tensors(monkeypatch):
    """Also past the choice: a call like an earlier one goes straight to the launcher."""
    monkeypatch.setattr(built_module, "run_on", lambda _, run, arguments: run(*arguments))
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    ran: list[str] = []
    found.otherwise.run = stub(ran, "triton")
    found.run = describing(stub(ran, "gluon"), built_module._otherwise(found))
    good, odd = rows(*LONG), ODD["an expanded head"]
    for arguments in ([good, good, good], [good, odd, odd]):
        launch(found, arguments[0], arguments)
    assert ran == ["gluon", "triton"]
    for arguments in ([good, good, good], [good, good, odd]):
        found.run(*arguments)
    assert ran == ["gluon", "triton"] * 2


def test_a_first_call_of_tensors_without_descriptors_compiles_triton_alone(monkeypatch):
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    compiled = []
    monkeypatch.setattr(
        built_module, "first_launch", lambda built, q, _: compiled.append(built) or [q]
    )
    odd = ODD["an expanded head"]
    launch(found, odd, [odd, odd, odd])
    assert [built.plan.backend for built in compiled] == ["triton"]


def test_a_card_whose_compiler_refuses_all_of_gluon_has_tritons_plans_next():
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    order = [plan.backend for plan in found.plans]
    assert order == sorted(order) and set(order) == {"gluon", "triton"}
    found.rank = order.index("triton")
    odd = ODD["an expanded head"]
    assert found.taking(odd, odd, odd) is found


def test_an_address_alone_pins_no_call_to_triton():
    """It is no part of what tells calls apart, and the launcher of such calls looks at it."""
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    odd = torch.zeros(65 * 64 + 1, dtype=torch.bfloat16)[1:].view(1, 65, 1, 64)
    assert found.taking(odd, odd, odd) is found.otherwise
    assert found.taking_like(odd, odd, odd) is found
    expanded = ODD["an expanded head"]
    assert found.taking_like(expanded, odd, odd) is found.otherwise


@pytest.mark.parametrize("odd", [False, True])
def test_a_call_is_remembered_with_the_launcher_that_takes_its_tensors(odd, monkeypatch):
    op = compile_op(shipped()["flash"])
    found = find(op, rows(*LONG))
    found.run, found.otherwise.run = print, repr
    monkeypatch.setattr(op_module, "call_key", lambda *_: "key")
    monkeypatch.setattr(op.built_plans, "find", lambda *_, **__: found)
    q = torch.zeros(1, 8, 1, 128, dtype=torch.bfloat16)
    k = q.expand(1, 8, 1, 128) if not odd else torch.zeros(1, 8, 1, 256, dtype=q.dtype)[..., ::2]
    monkeypatch.setattr(launched, "launch", lambda *_: [q, q[..., 0].transpose(1, 2)])
    op(q, k, k)
    assert op._seen.find("key", op_module.generation()).run is (repr if odd else print)


def answer_for(plan) -> Tuned:
    """An answer that a card gave for a plan, on shapes like LONG."""
    work = Bucket.of(LONG[0], LONG[2], LONG[1], LONG[1])
    facts = {"ms": 1.0, "noise": 0.0, "measured": 2, "candidates": 2}
    return Tuned(
        kernel_key(plan), plan.variant.name, plan.phase, plan.dtype, plan.dims, work,
        choice_of(plan), triton="3.6.0", attnc="0", when="", **facts,
    )  # fmt: skip


def test_an_answer_for_triton_is_its_plans_and_does_not_displace_gluon(monkeypatch):
    op = compile_op(shipped()["flash"])
    first = find(op, rows(*LONG))
    tuned_tiles = first.otherwise.plans[5]
    answer = answer_for(tuned_tiles)
    monkeypatch.setattr(tuned, "_answers", lambda _: {answer.key: answer})
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    assert found.plan.backend == "gluon" and choice_of(found.plan) == choice_of(first.plan)
    assert choice_of(found.otherwise.plan) == choice_of(tuned_tiles)
    assert choice_of(found.otherwise.plan) != choice_of(first.otherwise.plan)


def test_an_answer_for_gluon_is_its_own_plans(monkeypatch):
    op = compile_op(shipped()["flash"])
    first = find(op, rows(*LONG))
    answer = answer_for(first.plans[1])
    monkeypatch.setattr(tuned, "_answers", lambda _: {answer.key: answer})
    found = find(compile_op(shipped()["flash"]), rows(*LONG))
    assert found.plan.backend == "gluon"
    assert choice_of(found.plan) == choice_of(first.plans[1]) != choice_of(first.plan)
    assert choice_of(found.otherwise.plan) == choice_of(first.otherwise.plan)


def test_tuning_measures_the_backend_that_such_a_call_runs():
    op = compile_op(shipped()["flash"], device="h100")
    job = Job(op, Shape(4, 4096, 4096, 16, 16, 128, 128), "bf16", "forward")
    assert {plan.backend for plan in ranked_plans(job, torch.device("cpu"))} == {"triton"}
    asked = compile_op(shipped()["flash"], backend="gluon")
    job = Job(asked, job.shape, "bf16", "forward")
    assert {plan.backend for plan in ranked_plans(job, torch.device("cpu"))} == {"gluon"}


def test_a_backward_has_a_backend_of_its_own():
    op = compile_op(shipped()["flash"])
    found = find(op, rows(16, 1024, 32, 64), wanted=())
    assert (found.plan.phase, found.plan.backend) == ("backward", "gluon")
    assert (found.otherwise.plan.phase, found.otherwise.plan.backend) == ("backward", "triton")
    assert find(op, rows(16, 1024, 32, 64)).plan.backend == "triton"
    asked = compile_op(shipped()["flash"], backend="gluon")
    wide = rows(4, 1024, 16, 256)
    assert find(asked, wide).plan.backend == "gluon"
    assert find(asked, wide, wanted=()).plan.backend == "triton", "it takes no such backward"


def test_a_step_and_packed_sequences_run_triton():
    op = compile_op(shipped()["flash"])
    q = rows(*LONG)
    step = op._decode_plans.find(
        rows(4, 1, 16, 128), rows(4, 1, 16, 128), [], Workload(4, 1, 4096, 16, 16), "fp32",
        cache="contiguous",
    )  # fmt: skip
    assert step.plan.backend == "triton"
    assert find(op.over_sequences(), q).plan.backend == "triton"


def test_lengths_that_never_repeat_do_not_fill_memory(monkeypatch):
    op = compile_op(shipped()["flash"])
    monkeypatch.setattr(built_plans, "_MOST", 8)
    for tokens in range(200, 230):
        find(op, rows(1, tokens, 2, 64))
    assert len(op.built_plans._chosen) <= 8
    assert len(op.built_plans.by_kind) == 1


def test_an_op_prints_both_plans():
    op = compile_op(shipped()["flash"], device="h100")
    text = op.explain(dim=(128, 128))
    assert "gluon backend, bf16, K=128 V=128" in text
    assert "otherwise: triton, where the copy engine cannot read q, k or v as they lie" in text
