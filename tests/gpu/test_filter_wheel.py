"""A wheel of convolutions on a GPU, attnc and Triton made to fail if touched, held to fp64."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
import torch

from attnc.ops.reference.convolution import convolution_gradients, convolve
from attnc.ops.shipped import convolutions
from attnc.ops.verification.convolution import FilterShape, draw_filter
from tests.cli.test_filter_wheel import CALL, SAVE
from tests.cli.test_wheel import BARE

pytestmark = pytest.mark.gpu
# lengths of one block, of pieces, and of three passes' own
CALLS = {
    "hyena": [(3, 1000, 16, 1000), (2, 8192, 8, 8192), (1, 20000, 4, 3000)],
    "long_conv": [(3, 1024, 16, 1024)],
    "short_conv": [(4, 333, 24, 4)],
    "butterfly_conv": [(3, 1000, 16, 1000)],
}
CASES = [(name, size) for name, sizes in CALLS.items() for size in sizes]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    lengths = ["--tokens", "1024", "--tokens", "65536"]
    for names, tokens in ((["hyena", "long_conv", "short_conv"], lengths),
                          (["butterfly_conv"], lengths[:2])):  # fmt: skip
        built = folder / names[0]
        command = [sys.executable, "-m", "attnc", "build", *names, "--target", "cuda:90", *tokens,
                   "--wheel", "my_kernels", "-o", str(built), "--jobs", "8"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(next(built.iterdir())) as archive:
            archive.extractall(built)
    return folder


@pytest.mark.parametrize("how", ["promised", "apart", "unaligned", "compiled", "graph"])
@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_a_wheel_gives_outputs_and_gradients_in_any_layout(name, size, how, unpacked, tmp_path):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the wheel is built for 9.0")
    variant, shape = convolutions()[name], FilterShape.of(*size)
    generator, cuda = torch.Generator().manual_seed(0), torch.device("cuda")
    v, tensors = draw_filter(variant, shape, torch.bfloat16, generator, cuda)
    do = torch.randn(v.shape, generator=generator).bfloat16()
    wanted = [t.name for t in (*variant.params, *variant.inputs) if t.grad]
    facts = {"v": v.cpu(), "tensors": {k: x.cpu() for k, x in tensors.items()}, "do": do,
             "wanted": wanted}  # fmt: skip
    torch.save(facts, tmp_path / "given.pt")
    script = BARE + 'DEVICE = "cuda"' + CALL + SAVE
    folder = unpacked / ("butterfly_conv" if name == "butterfly_conv" else "hyena")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), name, how, str(tmp_path / "given.pt"),
         str(tmp_path / "taken.pt")],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out, *found = (x.cuda() for x in torch.load(tmp_path / "taken.pt"))
    expected = convolve(variant, v, tensors, by_fft=True)
    assert (out.double() - expected).norm() / expected.norm() < 1.2e-2
    wide = convolution_gradients(variant, v, tensors, do.cuda(), by_fft=True)
    for label, gradient in zip(("v", *wanted), found, strict=True):
        error = (gradient.double() - wide[label]).norm() / wide[label].norm()
        # the skip's gradient is a sum over all tokens that cancels
        assert error < (0.05 if label == "D" else 1.8e-2), (label, float(error))
