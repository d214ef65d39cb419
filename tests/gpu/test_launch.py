"""Launches in C, by ctypes and by Triton: the same bits, in graphs, streams and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.text.launch import used_tensors
from attnc.dsl.toml_file import loads
from attnc.ops.built import store_plan
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs

pytestmark = pytest.mark.gpu
GLUON = loads((Path(__file__).parent / "gluon_variants.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Case:
    """A variant at a shape; of gluon where it is one of gluon's."""

    name: str
    shape: Shape
    gluon: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.shape.qk}{'-gluon' if self.gluon else ''}"


# one kernel, three, three with constant tables, and descriptors of one copy a tile and of two
CASES = (
    Case("flash", Shape(2, 333, 333, 4, 2, 64, 64, strided=True)),
    Case("flash_alibi", Shape(1, 63, 200, 4, 1, 128, 128)),
    Case("lightning", Shape(2, 1000, 1000, 4, 2, 64, 64)),
    Case("based", Shape(2, 333, 333, 4, 2, 16, 64)),
    Case("sloped", Shape(2, 333, 333, 4, 2, 64, 64, strided=True), gluon=True),
    Case("sloped", Shape(2, 333, 333, 4, 2, 128, 128, strided=True), gluon=True),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def op_of(case: Case) -> Op:
    if not case.gluon:
        return compile_op(shipped()[case.name], backend="triton")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gluon's kernels are made for sm_90")
    return compile_op(GLUON[case.name], backend="gluon")


def drawn(op: Op, case: Case, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return draw_inputs(op.variant, case.shape, torch.bfloat16, generator, torch.device("cuda"))


def poison() -> None:
    """Fill what the allocator hands out next with NaN: an element that nobody writes shows."""
    blocks = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(8, 24)]
    del blocks


def tritons(op: Op, inputs: Inputs) -> torch.Tensor:
    """The output as the emitted module gives it, by Triton's own launches."""
    (built,) = op.built_plans.by_kind.values()
    module = load_module(store_plan(built.plan))
    poison()
    found = module.forward(*inputs.qkv, *(inputs.tensors[n] for n in used_tensors(built.plan)))
    return found[0] if isinstance(found, tuple) else found


def warmed(case: Case) -> Op:
    """An op whose next call like these is replayed."""
    op = op_of(case)
    for seed in range(3):  # compiled, recorded, replayed
        inputs = drawn(op, case, seed)
        op(*inputs.qkv, **inputs.tensors)
    latest = op._seen._latest
    assert latest is not None and latest.seen.threads.replay is not None, "not replayed"
    assert latest.seen.threads.replay.native is not None, "not replayed in C"
    return op


@every_case
def test_a_replay_in_c_and_one_by_ctypes_give_the_bits_of_tritons(case):
    op = warmed(case)
    threads = op._seen._latest.seen.threads
    for seed in range(3, 8):
        if seed == 6:
            threads.replay = replace(threads.replay, native=None)
        inputs = drawn(op, case, seed)
        wanted = tritons(op, inputs)
        poison()
        assert torch.equal(op(*inputs.qkv, **inputs.tensors), wanted), f"call {seed}"
        assert not wanted.isnan().any()


@every_case
def test_a_graph_of_a_replay_runs_on_what_its_inputs_hold_then(case):
    op = warmed(case)
    inputs = drawn(op, case, 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(*inputs.qkv, **inputs.tensors)
    for seed in (4, 5):
        other = drawn(op, case, seed)
        for kept, fresh in zip(inputs.qkv, other.qkv, strict=True):
            kept.copy_(fresh)
        for name, kept in inputs.tensors.items():
            kept.copy_(other.tensors[name])
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, tritons(op, other))


@every_case
def test_compiled_it_gives_the_bits_of_an_eager_call(case):
    op = warmed(case)
    inputs = drawn(op, case, 3)
    eager = op(*inputs.qkv, **inputs.tensors)
    call = torch.compile(lambda *qkv: op(*qkv, **inputs.tensors) * 2, fullgraph=True)
    for _ in range(2):
        assert torch.equal(call(*inputs.qkv), eager * 2)
    assert torch.equal(op(*inputs.qkv, **inputs.tensors), eager), "eager after a compiled call"


@every_case
def test_other_streams_and_threads_replay_too(case):
    op = warmed(case)
    inputs = drawn(op, case, 3)
    wanted = tritons(op, inputs)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        qkv = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
               for x in inputs.qkv]  # fmt: skip
        for late, x in zip(qkv, inputs.qkv, strict=True):
            late.copy_(x)
        out = op(*qkv, **inputs.tensors)
    stream.synchronize()
    assert torch.equal(out, wanted), "launched on another stream than the current one"

    def three_calls() -> torch.Tensor:
        outs = [op(*inputs.qkv, **inputs.tensors) for _ in range(3)]
        torch.cuda.synchronize()
        return outs[-1]

    for _ in range(2):  # threads come and go, and one may be taken for another
        with ThreadPoolExecutor(4) as pool:
            for found in [pool.submit(three_calls) for _ in range(8)]:
                assert torch.equal(found.result(), wanted)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_an_odd_address_and_a_call_in_between_are_no_replay(case):
    op = warmed(case)
    inputs = drawn(op, case, 3)
    wanted = tritons(op, inputs)
    q = inputs.q
    storage = torch.zeros(q.untyped_storage().nbytes() // q.element_size() + 1, dtype=q.dtype,
                          device="cuda")  # fmt: skip
    odd = storage[1:].as_strided(q.shape, q.stride(), storage_offset=1)
    odd.copy_(q)
    assert odd.data_ptr() % 16
    found = op(odd, *inputs.qkv[1:], **inputs.tensors)
    assert torch.allclose(found.float(), wanted.float(), atol=2e-2, rtol=2e-2)
    assert torch.equal(op(*inputs.qkv, **inputs.tensors), wanted)
    leaf = q.clone().requires_grad_()
    assert op(leaf, *inputs.qkv[1:], **inputs.tensors).requires_grad
    assert not op(*inputs.qkv, **inputs.tensors).requires_grad
    out, *_ = op(*inputs.qkv, return_lse=True, **inputs.tensors) if op.softmax else (wanted,)
    assert torch.equal(out, wanted)
