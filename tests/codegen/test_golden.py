"""The golden kernels: one canonical text a variant, importable, and read by people."""

from __future__ import annotations

import importlib.util

import pytest

from attnc.dsl import loads
from attnc.ops.op import compile as compile_op
from tests.codegen.emitted import all_variants
from tests.conftest import GOLDEN
from tests.ops.convolutions import CONVOLUTIONS

NAMES = (
    "flash",
    "flash_window",
    "flash_alibi",
    "flash_sigmoid",
    "based",
    "lightning",
    "linear",
    "gated",
    "gla",
    "window_taylor",
)
RETENTION = """
[retention]
feature_map = "identity"
scale = "rsqrt(d)"
log_decay = "-slope[h]"
mask = "causal"
normalize = "none"
params.slope = { shape = ["h"] }
"""
BACKWARD = ("flash_alibi", "flash_sigmoid", "based", "lightning", "gla", "window_taylor")


def portable(name: str) -> str | None:
    """What to ask for where the planner would take gluon; its kernels have files of their own."""
    return "triton" if name.startswith("flash") else None


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_text_is_what_is_emitted(name, golden):
    dims = (16, 64) if name == "based" else (64, 64)
    op = compile_op(all_variants()[name], device="h100", backend=portable(name))
    golden(f"{name}_fwd.py", op.source(dim=dims, dtype="bf16"))


def test_the_golden_sum_by_chunks_is_what_is_emitted(golden):
    """The far term by a state: in a loop over chunks around the walks, and in walks of its own."""
    op = compile_op(all_variants()["hybrid"], device="h100")
    golden("hybrid_fwd.py", op.source(dim=(64, 64), dtype="bf16"))
    golden("hybrid_bwd.py", op.source(dim=(64, 64), dtype="bf16", backward=True))


@pytest.mark.parametrize("name", BACKWARD)
def test_the_golden_backward_is_what_is_emitted(name, golden):
    dims = (16, 64) if name == "based" else (64, 64)
    op = compile_op(all_variants()[name], device="h100", backend=portable(name))
    golden(f"{name}_bwd.py", op.source(dim=dims, dtype="bf16", backward=True))


def test_the_golden_walk_is_what_is_emitted(golden):
    """A decay that has no gradient: the chunks of a head are walked."""
    op = compile_op(loads(RETENTION)["retention"], device="h100")
    golden("retention_bwd.py", op.source(dim=(64, 64), dtype="bf16", backward=True))


def test_the_golden_gluon_kernel_is_what_is_emitted(golden):
    op = compile_op(all_variants()["flash_alibi"], device="h100", backend="gluon")
    golden("flash_alibi_gluon_fwd.py", op.source(dim=(128, 128), dtype="bf16"))
    golden("flash_alibi_gluon_bwd.py", op.source(dim=(128, 128), dtype="bf16", backward=True))


def test_the_golden_convolution_is_what_is_emitted(golden):
    op = compile_op(CONVOLUTIONS["past"], device="h100")
    golden("past_fft_bwd.py", op.source(dtype="bf16", form="fft", backward=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_file_is_a_module_with_a_forward(name):
    path = GOLDEN / f"{name}_fwd.py"
    spec = importlib.util.spec_from_file_location(f"golden_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.forward)
    assert module.__doc__.startswith(f"{name}: ")
