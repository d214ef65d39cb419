"""A wheel of convolutions: which module a call takes, and what its launcher and binaries get.

There is no GPU here, so a driver is faked, and each launch that it takes is interpreted from the
source that the package ships beside the binaries.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from attnc.dsl import loads
from attnc.ops.reference.convolution import convolution_gradients, convolve
from attnc.ops.shipped import convolutions
from attnc.ops.verification.convolution import FilterShape, draw_filter
from tests.cli.test_wheel import bare

ROOT = Path(__file__).parents[2]
MINE = """
[mine]
weight = "w[c, i-j]"
mask = "window(40, 2)"
skip = "D[c]"
pregate = "a[b,t,c]"
postgate = "g[b,t,c]"
transforms = ["smooth(3)", "squash(0.01)"]
params.w = { shape = ["c", "T"], grad = true }
params.D = { shape = ["c"], grad = true }
inputs.a = { shape = ["b", "t", "c"], grad = true }
inputs.g = { shape = ["b", "t", "c"], grad = true }
"""
VARIANTS = {"mine": loads(MINE)["mine"], "butterfly_conv": convolutions()["butterfly_conv"]}
# the wheel's own launcher and binaries' entries, over a driver that only writes down
STUB = """
import importlib.util, sys
from pathlib import Path
import torch
from attnc.autotune import interpreter_repairs
from tests.autotune.test_binary_kernel import FakeLibrary

interpreter_repairs.repair_index()
interpreter_repairs.poison_empty()
sys.path.insert(0, sys.argv[1])
import my_kernels
from my_kernels import package_folder, packaged_filter
from my_kernels.binary_kernel import BinaryKernel, load_launcher
from my_kernels.launcher import Driver

torch._C._cuda_getDevice = lambda: 0
torch._C._cuda_getCurrentRawStream = lambda device: 9
read = []

class Interpreted:
    def __init__(self, usual, general, package, kernel):
        def binary(entry):
            read.append(entry["file"])
            return package.read(entry)
        self.binary = BinaryKernel(usual, general, binary, Driver(FakeLibrary()))
        self.arguments, self.kernel = usual["arguments"], kernel

    def launch(self, grid, tensors, numbers):
        self.binary.launch(grid, tensors, numbers)
        own = self.arguments[len(tensors) + len(numbers):]
        assert all(argument["type"] == "constexpr" for argument in own)
        constants = {argument["name"]: argument["value"] for argument in own}
        self.kernel[grid](*tensors, *numbers, **constants)

def launcher_on(self, module, device):
    place = self._folder / module["source"]["file"]
    spec = importlib.util.spec_from_file_location("shipped_source", place)
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    general = {entry["kernel"]: entry for entry in module["general"]}
    kernels = {
        entry["kernel"]: Interpreted(entry, general[entry["kernel"]], self,
                                     getattr(source, entry["kernel"]))
        for entry in module["kernels"]
    }
    text = self.read(module["launcher"])
    return load_launcher(text, str(place), "my_kernels", kernels)[module["facts"]["phase"]]

package_folder.Package.launcher_on = launcher_on
packaged_filter.capability_of = lambda name, x: (8, 0)
packaged_filter.run_on = lambda device, run, arguments: run(*arguments)
DEVICE = "cpu"
"""
# `how` lays v out as promised, with channels adjacent, or off its alignment
CALL = """
name, how, given, taken = sys.argv[2:]
facts = torch.load(given)
op = getattr(my_kernels, name)

def laid_out(x):
    x = x.to(DEVICE)
    if how == "apart":
        return x.contiguous().clone()
    if how == "unaligned":
        x = x.transpose(1, 2)
        flat = x.new_zeros(x.numel() + 1)
        flat[1:] = x.flatten()
        return flat[1:].view(x.shape).transpose(1, 2)
    return x.transpose(1, 2).contiguous().transpose(1, 2)

v = laid_out(facts["v"]).detach().requires_grad_()
tensors = {
    k: (laid_out(x) if k in ("a", "g") else x.to(DEVICE)).detach()
    for k, x in facts["tensors"].items()
}
for k in facts["wanted"]:
    tensors[k].requires_grad_()
if how == "compiled":
    call = torch.compile(lambda v: op(v, **tensors), fullgraph=True, backend="aot_eager")
    out = call(v)
else:
    out = op(v, **tensors)
leaves = {"v": v, **{k: tensors[k] for k in facts["wanted"]}}
found = torch.autograd.grad(out, list(leaves.values()), facts["do"].to(DEVICE))
with torch.no_grad():
    again = op(v, **tensors)
    assert torch.equal(again, out.detach()), "a second call differs"
    if how == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = op(v, **tensors)
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, again), "a replay differs"
"""
SAVE = """
torch.save([out.detach().cpu(), *(x.cpu() for x in found)], taken)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "mine.toml").write_text(MINE, encoding="utf-8")
    command = [
        sys.executable, "-m", "attnc", "build", str(folder / "mine.toml"), "butterfly_conv",
        "--target", "cuda:80", "--dtype", "fp32", "--tokens", "64", "--wheel", "my_kernels",
        "-o", str(folder / "built"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((folder / "built").iterdir())) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_of_convolutions_is_imported_with_no_attnc_and_no_triton(unpacked):
    script = """
print(my_kernels.__all__, my_kernels.mine)
print({name: list(x.shape) for name, x in my_kernels.butterfly_conv.init_factors(64).items()})
try:
    my_kernels.mine(torch.zeros(1, 8, 2), w=torch.zeros(2, 3), D=torch.zeros(2),
                    a=torch.zeros(1, 8, 2), g=torch.zeros(1, 8, 2))
except Exception as error:
    print(error)
try:
    my_kernels.mine(*[torch.zeros(1, 8, 2)] * 3)
except Exception as error:
    print(error)
"""
    done = bare(unpacked, script)
    assert done.returncode == 0, done.stderr
    first, factors, device, queries, *_ = done.stdout.splitlines()
    assert first.startswith("['mine', 'butterfly_conv'] <mine: weight w[c, i-j], mask window(40")
    assert "forward fp32 planned for 64 tokens, takes any, cuda:80" in first
    assert factors == "{'F1': [2, 32, 16], 'F2': [2, 16, 16]}"
    assert device == "error[A300]: v is on cpu; the package holds binaries for CUDA devices"
    assert queries == "error[A300]: 'mine' is a convolution and takes v alone, not 3 tensors"


@pytest.mark.parametrize(
    ("name", "how", "tokens", "wanted"),
    [
        ("mine", "promised", 48, ("D", "w", "a", "g")), ("mine", "apart", 37, ()),
        ("butterfly_conv", "compiled", 64, ("D", "F1", "F2", "w")),
    ],
)  # fmt: skip
def test_what_a_launcher_launches_is_the_formula_and_its_gradients(
    name, how, tokens, wanted, unpacked, tmp_path
):
    variant, shape = VARIANTS[name], FilterShape.of(3, tokens, 2, 33)
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    v, tensors = draw_filter(variant, shape, torch.float32, generator, torch.device("cpu"))
    do = torch.randn(v.shape, generator=generator)
    facts = {"v": v, "tensors": tensors, "do": do, "wanted": wanted}
    torch.save(facts, tmp_path / "given.pt")
    save = SAVE + "print(*sorted({'.general.' in file for file in read}))"
    done = subprocess.run(
        [sys.executable, "-c", STUB + CALL + save, str(unpacked), name, how,
         str(tmp_path / "given.pt"), str(tmp_path / "taken.pt")],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out, dv, *others = torch.load(tmp_path / "taken.pt")
    expected = convolve(variant, v, tensors)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    gradients = convolution_gradients(variant, v, tensors, do)
    for label, found in zip(("v", *wanted), (dv, *others), strict=True):
        size = gradients[label].abs().max()
        assert size > 0.01 and (found - gradients[label]).abs().max() < 1e-4 * size, label
    # rows of sixteens keep the promises of the usual binaries; others run those of any strides
    assert ("True" in done.stdout) is (tokens % 16 != 0)


def test_lengths_are_for_convolutions_alone(attnc):
    done = attnc("build", "flash", "--target", "cuda:80", "--tokens", "64", "-o", "out")
    assert (done.status, done.err.splitlines()[0]) == (
        64, "error[A500]: --tokens is for convolutions, whose forms differ from length to length",
    )  # fmt: skip
