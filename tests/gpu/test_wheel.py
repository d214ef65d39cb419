"""A wheel on a GPU: with attnc and Triton made to fail if touched, against the formula."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
import torch

from attnc.ops.op import compile as compile_op
from attnc.ops.reference.attend import pt
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.shipped import shipped
from attnc.ops.verification.criterion import bound_of, check
from attnc.ops.verification.draw import Shape, draw_inputs
from tests.cli.test_wheel import BARE

pytestmark = pytest.mark.gpu
CALLS = {
    "flash": Shape(2, 300, 300, 4, 2, 64, 64),
    "flash_alibi": Shape(1, 63, 200, 4, 1, 64, 64),
    "lightning": Shape(2, 1000, 1000, 4, 2, 64, 64),
    "linear": Shape(1, 130, 130, 2, 2, 64, 64),
}
# `how` lays the inputs out as promised, with channels apart, or off their alignment
RUN = """
name, how, given, taken = sys.argv[2:]
facts = torch.load(given)
op = getattr(my_kernels, name)

def laid_out(x):
    if how == "apart":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    if how == "unaligned":
        flat = x.new_zeros(x.numel() + 1)
        flat[1:] = x.flatten()
        return flat[1:].view(x.shape)
    return x.clone()

leaves = [laid_out(x.cuda()).detach().requires_grad_() for x in facts["qkv"]]
tensors = {k: x.cuda().requires_grad_() for k, x in facts["tensors"].items()}
if how == "compiled":
    call = torch.compile(lambda *x: op(*x, **tensors), fullgraph=True, backend="aot_eager")
    out = call(*leaves)
else:
    out = op(*leaves, **tensors)
wanted = [*leaves, *tensors.values()]
found = torch.autograd.grad(out, wanted, facts["do"].cuda())
with torch.no_grad():
    again = op(*leaves, **tensors)
    assert torch.equal(again, out.detach()), "a second call differs"
    if how == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = op(*leaves, **tensors)
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, again), "a replay differs"
torch.save([out.detach().cpu(), *(x.cpu() for x in found)], taken)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    built = os.environ.get("ATTNC_TEST_WHEEL")  # one built elsewhere, by another Triton perhaps
    if built:
        with zipfile.ZipFile(built) as archive:
            archive.extractall(folder)
        return folder
    command = [sys.executable, "-m", "attnc", "build", *CALLS, "--target", "cuda:90", "--dim",
               "64", "--wheel", "my_kernels", "-o", str(folder), "--jobs", "8"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.iterdir())) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("how", ["promised", "apart", "unaligned", "compiled", "graph"])
@pytest.mark.parametrize("name", CALLS)
def test_a_wheel_gives_outputs_and_gradients_in_any_layout(name, how, unpacked, tmp_path):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the wheel is built for 9.0")
    op, shape = compile_op(shipped()[name]), CALLS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = draw_inputs(op.variant, shape, torch.bfloat16, generator, torch.device("cuda"))
    do = torch.randn(shape.batch, shape.tq, shape.hq, shape.v, generator=generator).bfloat16()
    facts = {
        "qkv": [x.cpu() for x in inputs.qkv],
        "tensors": {k: x.cpu() for k, x in inputs.tensors.items()}, "do": do,
    }  # fmt: skip
    torch.save(facts, tmp_path / "given.pt")
    command = [sys.executable, "-c", BARE + RUN, str(unpacked), name, how,
               str(tmp_path / "given.pt"), str(tmp_path / "taken.pt")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out, *found = (x.cuda() for x in torch.load(tmp_path / "taken.pt"))
    ref = op.reference(*inputs.qkv, **inputs.tensors)
    verdict = check(out, ref, pt(op.variant, *inputs.qkv, inputs.tensors))
    assert verdict.passed and verdict.zeros_fail, str(verdict)
    incoming = Incoming(do.cuda())
    wide = reference_gradients(op.variant, *inputs.qkv, inputs.tensors, incoming)
    eager = reference_gradients(
        op.variant, *inputs.qkv, inputs.tensors, incoming, dtype=torch.float32,
        rounding=torch.bfloat16,
    )  # fmt: skip
    for label, gradient in zip(("q", "k", "v", *inputs.tensors), found, strict=True):
        apart = (gradient.double() - wide[label]).abs().max()
        allowed = 1.5 * bound_of(wide[label], eager[label], torch.bfloat16)
        assert apart <= allowed, f"d {label}: {apart} of {allowed}"
