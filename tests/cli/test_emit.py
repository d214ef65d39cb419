"""`attnc emit`: the same line gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def emitted(hash_seed: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "attnc", "emit", "based", "--device", "a100"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout


def test_the_same_line_gives_the_same_bytes_under_any_hash_seed():
    assert emitted("0") == emitted("12345")


def test_a_file_holds_what_would_have_been_printed(attnc, tmp_path):
    printed = attnc("emit", "lightning", "--dim", "128").out
    done = attnc("emit", "lightning", "--dim", "128", "-o", tmp_path / "lightning.py")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert (tmp_path / "lightning.py").read_bytes() == printed.encode()
    assert "def lightning_output(" in printed
    compile(printed, "lightning.py", "exec")


def test_it_is_what_the_op_says_is_its_source(attnc):
    import attnc as package
    from attnc.ops.shipped import shipped

    op = package.compile(shipped()["flash"])
    assert attnc("emit", "flash", "--dtype", "fp16").out == op.source(dtype="fp16")


def test_a_stateful_module_takes_a_state(attnc):
    assert "initial_state" in attnc("emit", "based", "--stateful").out
    assert "initial_state" not in attnc("emit", "based").out


def test_a_state_that_softmax_cannot_keep_is_refused(attnc):
    done = attnc("emit", "flash", "--stateful")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error[A200]: 'flash' has no chunked form\n")
    done = attnc("emit", "based", "--stateful", "--form", "parallel")
    assert (done.status, done.out) == (64, "")
    assert done.err == ("error[A500]: the parallel form keeps no state\n  hint: leave --form out\n")
