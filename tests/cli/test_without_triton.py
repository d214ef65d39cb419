"""A laptop whose system Triton has no wheels for: what works, and what says why it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import attnc
from attnc.errors import TritonMissing

# `None` is how Python marks a module as not to be found; the last two Windows lacks as well
ABSENT = ("triton", "fcntl", "resource")
WITHOUT = "declaring, check, plan, explain, emit, gallery and op.reference do without it\n"
ON_A_MAC = (
    "error[A403]: {purpose} needs Triton, which is not installed\n"
    "  note: Triton has wheels for Linux, and this is macOS\n"
    f"  note: {WITHOUT}"
    "  hint: use Linux for that: a container, WSL, or the machine with the GPU\n"
)
ON_LINUX = (
    "error[A403]: {purpose} needs Triton, which is not installed\n"
    f"  note: {WITHOUT}"
    "  hint: pip install triton\n"
)


def on(system: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where these modules are missing and the system is another."""
    code = (
        # these two ask the system that they are on
        "import sys, torch, filelock\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.platform = {system!r}\n"
        f"from attnc.cli import main; sys.argv = ['attnc', *{list(arguments)!r}]; sys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.rest(keep=2)
@pytest.mark.parametrize(
    "line",
    ["list", "check based", "plan based --no-compiled", "explain lightning --backward", "emit gla"],
)
def test_whatever_compiles_nothing_works_without_triton(line):
    done = on("darwin", *line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 100


def test_a_page_of_the_gallery_is_made_without_triton(tmp_path):
    done = on("darwin", "gallery", "based", "-o", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "b_h0" in (tmp_path / "based.md").read_text()


def test_a_plan_without_the_compiler_says_that_it_stands_alone():
    done = on("darwin", "plan", "flash")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: Triton is not installed, so no compiler's figures stand beside the plan's\n"
    )
    assert "sram" in done.stdout and "compiler" not in done.stdout


@pytest.mark.parametrize(
    ("line", "purpose"),
    [
        ("verify flash", "running kernels on a CPU"),
        ("build flash --target cuda:90 -o OUT", "compiling kernels"),
        ("sram-table", "compiling kernels"),
        ("demo", "the demo"),
    ],
)
def test_what_needs_triton_says_where_there_is_one(line, purpose, tmp_path):
    done = on("darwin", *line.replace("OUT", str(tmp_path / "out")).split())
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr == ON_A_MAC.format(purpose=purpose)
    assert not (tmp_path / "out").exists()


def test_on_linux_the_hint_is_to_install_it():
    done = on("linux", "demo")
    assert (done.returncode, done.stderr) == (70, ON_LINUX.format(purpose="the demo"))


def test_an_op_has_its_reference_without_triton_and_refuses_to_run_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    op = attnc.compile(attnc.shipped()["flash"])
    q, k, v = torch.randn(3, 1, 9, 2, 16)
    assert op.reference(q, k, v).shape == (1, 9, 2, 16)
    with pytest.raises(TritonMissing, match="running kernels on a CPU needs Triton"):
        op(q, k, v)
