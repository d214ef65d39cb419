"""The store of tuned choices: keys, buckets, files, many processes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnc.autotune.tuning_store import TuningStore
from attnc.codegen.planning.choice import Bucket, choice_of, chosen, kernel_key
from attnc.codegen.planning.planner import plans
from attnc.errors import CacheError
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.tuning import tuned as tuned_module
from tests.autotune.test_tuning import ANSWER, DEVICE, ranked


@pytest.mark.parametrize("name", ["flash", "lightning"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_choice_finds_its_plan_again(name, backward):
    found = ranked(name, backward=backward)
    for plan in (found[0], found[len(found) // 2], found[-1]):
        assert chosen(found, choice_of(plan)).passes == plan.passes


def test_a_choice_that_no_plan_has_is_stale():
    found = ranked()
    assert chosen(found, ("online: BT=7 BS=7 BK=64 BV=64, 4 warps, 1 stages",)) is None
    assert chosen(found, (*choice_of(found[0]), "gates: BC=1024, 4 warps, 1 stages")) is None


def test_the_key_of_a_kernel_is_what_it_computes_and_not_its_tiles():
    first, other = ranked()[0], ranked()[-1]
    assert kernel_key(first) == kernel_key(other)
    others = [ranked(backward=True)[0], ranked("flash_window")[0], replace(first, dtype="fp16")]
    assert len({kernel_key(plan) for plan in (first, *others)}) == 4


@pytest.mark.parametrize(
    ("call", "bucket"),
    [((1, 1, 1, 1), (1, 1)), ((2, 3, 1000, 1000), (1024, 8)), ((8, 16, 4096, 100), (4096, 128)),
     ((8, 16, 4097, 4097), (8192, 128))],
)  # fmt: skip
def test_shapes_share_a_bucket_up_to_the_next_power_of_two(call, bucket):
    assert Bucket.of(*call) == Bucket(*bucket)


def test_a_store_gives_back_what_it_was_given(tmp_path):
    store = TuningStore(tmp_path)
    store.record(DEVICE, [ANSWER])
    assert store.lookup(DEVICE, ANSWER.kernel, ANSWER.bucket) == ANSWER
    assert store.lookup("NVIDIA H200", ANSWER.kernel, ANSWER.bucket) is None
    assert store.lookup(DEVICE, ANSWER.kernel, Bucket(8192, 64)) is None


def test_a_store_moves_to_another_machine_as_a_file(tmp_path):
    here, there = TuningStore(tmp_path / "here"), TuningStore(tmp_path / "there")
    here.record(DEVICE, [ANSWER])
    assert here.export_to(DEVICE, tmp_path / "tuned.json") == 1
    assert there.import_from(tmp_path / "tuned.json") == (DEVICE, 1)
    assert there.read(DEVICE) == here.read(DEVICE)


def test_a_file_that_is_no_store_is_refused_with_its_name(tmp_path):
    store = TuningStore(tmp_path)
    store.path(DEVICE).write_text('{"format": 9}')
    with pytest.raises(CacheError) as caught:
        store.read(DEVICE)
    assert caught.value.message == f"{store.path(DEVICE)} is not a store of tuned kernels"
    assert caught.value.notes == ("ValueError: format 9, this attnc reads 1",)


def test_many_processes_record_into_one_store_and_lose_nothing(tmp_path):
    script = """
import sys
from dataclasses import replace
from pathlib import Path
from attnc.autotune.tuning_store import TuningStore
from tests.autotune.test_tuning import ANSWER, DEVICE
store = TuningStore(Path(sys.argv[1]))
for n in range(20):
    store.record(DEVICE, [replace(ANSWER, kernel=f"{sys.argv[2]}-{n}")])
"""
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)], cwd=root)
        for n in range(3)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert len(TuningStore(tmp_path).read(DEVICE)) == 60


def test_a_shape_of_no_tuned_bucket_takes_the_nearest_in_length(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    plans_of = ranked()
    rows = [
        replace(ANSWER, kernel=kernel_key(plans_of[0]), bucket=Bucket(tokens, heads),
                choice=choice_of(plans_of[n]))
        for n, (tokens, heads) in enumerate([(1024, 256), (16384, 64), (1024, 16)])
    ]  # fmt: skip
    TuningStore().record("cpu", rows)
    tuned_module.forget()
    for bucket, n in (((1024, 256), 0), ((512, 512), 0), ((8192, 256), 1), ((2048, 8), 2)):
        found = tuned_module.tuned_plan(plans_of, torch.device("cpu"), Bucket(*bucket))
        assert choice_of(found) == choice_of(plans_of[n])
    # fp16 has bf16's costs: it takes its answers where it has none of its own
    halves = plans(replace(compile_op(shipped()["flash"], device="h100").request(
        (64, 64), "fp16", None, False), phase="forward"))  # fmt: skip
    assert choice_of(tuned_module.tuned_plan(halves, torch.device("cpu"), Bucket(1024, 256))) == (
        choice_of(plans_of[0])
    )
    other = ranked("flash_window")
    assert tuned_module.tuned_plan(other, torch.device("cpu"), Bucket(1024, 256)) is None
    tuned_module.forget()
