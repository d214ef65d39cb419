"""A wrong command line exits 64, so that 2 always means a refused declaration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnc as package
from attnc.autotune.target import KNOWN_TARGETS
from attnc.cli.facts import Facts, dims_of, heads_of
from attnc.cli.targets import device_of_target
from attnc.codegen.device import DEVICES
from attnc.errors import UsageError
from attnc.ops.shipped import shipped

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "lst",
            "error[A500]: No such command 'lst'\n"
            "  hint: Did you mean 'list'?\n"
            "  hint: attnc --help lists what there is\n",
        ),
        (
            "plan",
            "error[A500]: Missing argument 'NAME'\n  hint: attnc plan --help lists what there is\n",
        ),
        (
            "build flash --target cuda:80",
            "error[A500]: Missing option '-o' / '--output'\n"
            "  hint: attnc build --help lists what there is\n",
        ),
        (
            "plan flash --device h10",
            "error[A500]: unknown device 'h10'\n"
            "  note: the known ones are h100, h200, a100, l4, rtx4090, b200, mi300x, and targets "
            "such as cuda:86\n"
            "  hint: did you mean 'h100'?\n",
        ),
        (
            "plan flash --dtype bf61",
            "error[A500]: unknown dtype 'bf61'\n"
            "  note: the known ones are bf16, fp16, fp32, e4m3\n"
            "  hint: did you mean 'bf16'?\n",
        ),
        (
            "plan based --form chunk",
            "error[A500]: unknown form 'chunk'\n"
            "  note: the known ones are online, parallel, chunked, recurrent, toeplitz, fft, "
            "three_pass, butterfly\n"
            "  hint: did you mean 'chunked'?\n",
        ),
        (
            "emit flash --dim 64x64",
            "error[A500]: --dim '64x64' is not qk,v\n  hint: whole numbers from 1\n",
        ),
        (
            "emit flash --dim 0",
            "error[A500]: --dim '0' is not qk,v\n  hint: whole numbers from 1\n",
        ),
        (
            "explain flash --shape 4",
            "error[A500]: --shape '4' is not B,T or B,TQ,TK\n  hint: whole numbers from 1\n",
        ),
        (
            "emit flash --heads 6,4",
            "error[A500]: --heads 6,4: 6 query heads are no multiple of 4 key/value heads\n"
            "  note: query head h reads key/value head h // (q / kv)\n",
        ),
        (
            "verify flash --device tpu",
            "error[A500]: unknown device 'tpu'\n  note: verify runs on cpu, or on cuda\n",
        ),
        (
            "demo --only flesh",
            "error[A500]: the demo has no variant 'flesh'\n"
            "  note: it has flash, based, lightning\n"
            "  hint: did you mean 'flash'?\n",
        ),
    ],
    ids=lambda value: value if not value.startswith("error") else "",
)
def test_a_wrong_command_line_exits_64_and_says_what_is_wrong(line, text, attnc):
    done = attnc(*line.split())
    assert (done.status, done.out, done.err) == (64, "", text)


def test_a_module_that_cannot_be_written_exits_64(attnc, declare):
    inside = declare("") + "/flash.py"
    done = attnc("emit", "flash", "-o", inside)
    assert (done.status, done.out) == (64, "")
    assert done.err.startswith(f"error[A500]: cannot write {inside}: ")


def test_an_option_that_is_misspelled_exits_64(attnc):
    done = attnc("plan", "flash", "--devise", "h100")
    assert done.status == 64
    assert "--devise" in done.err
    assert "--device" in done.err


def test_an_unknown_target_exits_64_and_lists_the_known(attnc, tmp_path):
    done = attnc("build", "flash", "--target", "cuda:9", "-o", tmp_path / "out")
    assert done.status == 64
    assert "unknown target 'cuda:9'" in done.err
    assert "did you mean 'cuda:90'?" in done.err
    assert not (tmp_path / "out").exists()


def test_a_file_of_several_variants_where_one_is_wanted_exits_64(attnc, declare):
    one = '[{}]\nfeature_map = "softmax"\nscale = 1.0\n'
    done = attnc("emit", declare(one.format("left") + one.format("right")))
    assert done.status == 64
    assert done.err == (
        "error[A500]: mine.toml declares 2 variants, and one is wanted\n"
        "  note: they are left, right\n"
        "  hint: name one: mine.toml:left\n"
    )


def test_a_form_that_the_algebra_forbids_exits_2(attnc):
    done = attnc("plan", "flash", "--form", "chunked")
    assert done.status == 2
    assert done.err == (
        "error[A200]: 'flash' has no chunked form\n"
        "  note: exp(score) is no finite polynomial in s, so no state of fixed size holds it\n"
        "  hint: its legal forms are: online\n"
    )


@pytest.mark.parametrize(
    "line", ["emit flash -o", "tune --device x --export"], ids=["emit", "export"]
)
def test_a_folder_where_a_file_is_written_is_refused(line, attnc, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in (".", tmp_path):
        done = attnc(*line.split(), folder)
        assert (done.status, done.out) == (64, "")
        assert done.err == f"error[A500]: cannot write {folder}: Is a directory\n"
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_no_tile_fits_exits_2(attnc):
    done = attnc("plan", "flash", "--sram", "1000")
    assert done.status == 2
    assert "error[A200]: no tile of 'flash' at K=64, V=64, bf16 fits 1,000 B of SRAM" in done.err


def test_the_console_script_and_the_module_end_with_the_status():
    done = subprocess.run(
        [sys.executable, "-m", "attnc", "bogus"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (64, "")
    assert "Traceback" not in done.stderr
    code = "import sys; sys.argv = ['attnc', 'check', 'flahs']; from attnc.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2


def test_a_reader_that_closes_the_pipe_is_no_error():
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m attnc emit based | head -n 1",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith('"""based')
    # a text that fits the pipe's buffer is written before the reader leaves
    assert done.returncode in {0, 141}


def test_the_version_is_the_package_s(attnc):
    assert attnc("--version").out == f"attnc {package.__version__}\n"


def test_help_is_one_line_a_command(attnc):
    bare, asked = attnc(), attnc("--help")
    assert (bare.status, asked.status) == (0, 0)
    assert bare.out.split() == asked.out.split()
    for command in ("list", "check", "plan", "explain", "emit", "build", "verify", "demo"):
        (line,) = [text for text in asked.out.splitlines() if text.startswith(f"  {command} ")]
        assert "." in line


def test_an_interrupt_exits_130_without_a_traceback(attnc, monkeypatch):
    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("attnc.cli.list_variants.list_variants", interrupt)
    done = attnc("list")
    assert (done.status, done.out) == (130, "")
    assert "Traceback" not in done.err


def test_dims_and_heads_come_from_the_option_then_the_declaration_then_64():
    flash, based = shipped()["flash"], shipped()["based"]
    assert dims_of(flash, None) == (64, 64)
    assert dims_of(based, None) == (16, 64)
    assert dims_of(based, "80") == (80, 80)
    assert dims_of(shipped()["hyena"], None) == (1, 1)
    assert dims_of(based, "32,112") == (32, 112)
    assert heads_of(flash, None) is None
    assert heads_of(flash, "32,8") == (32, 8)


def test_facts_reach_the_request():
    facts = Facts("a100", "fp32", "128,64", "32,8", 65536, "chunked", "2,100,300", stateful=True)
    request = facts.request(shipped()["lightning"])
    assert (request.device.name, request.device.sram_bytes) == ("a100", 65536)
    assert (request.dims, request.dtype, request.form) == ((128, 64), "fp32", "chunked")
    assert request.heads == (32, 8)
    assert request.stateful
    work = request.workload
    assert (work.batch, work.tq, work.tk, work.hq, work.hkv) == (2, 100, 300, 32, 8)


@pytest.mark.parametrize("target", KNOWN_TARGETS)
def test_every_target_has_a_device_to_plan_for(target):
    device = device_of_target(target)
    assert device.target == target
    assert device.sram_bytes >= 65536


def test_a_target_is_planned_for_the_device_that_has_it():
    assert device_of_target("cuda:80") is DEVICES["a100"]
    assert device_of_target("cuda:90") is DEVICES["h100"]
    with pytest.raises(UsageError, match="unknown target"):
        device_of_target("cuda:70")


def test_an_ascii_terminal_gets_ascii():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "attnc", "plan", "flash", "--no-compiled"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=True,
    )
    assert b"\n  sram     ##" in done.stdout
