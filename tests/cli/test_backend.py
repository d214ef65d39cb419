"""`--backend`: what plan, emit and build make of it."""

from __future__ import annotations

import json


def test_a_plan_names_its_backend_and_why(attnc):
    done = attnc("plan", "flash", "--shape", "16,1024", "--no-compiled")
    assert "code   triton, not gluon: rows see 505 keys, and it is known to be faster" in done.out
    done = attnc("plan", "flash", "--backend", "gluon", "--no-compiled")
    assert done.status == 0
    assert done.out.startswith("flash on h100: online form, gluon backend, bf16, K=64 V=64")
    assert "NW=2, 12 warps" in done.out
    plan = json.loads(attnc("plan", "flash", "--backend", "gluon", "--no-compiled", "--json").out)
    assert (plan["backend"], plan["backend_reason"]) == ("gluon", "asked for")
    assert plan["otherwise"] is None


def test_a_plan_that_the_planner_gives_to_gluon_names_what_runs_otherwise(attnc):
    done = attnc("plan", "flash", "--dim", "128", "--no-compiled")
    assert "code   gluon, measured on an H100 at 128 columns: 1.6x triton's speed" in done.out
    assert (
        "else   triton, where the copy engine cannot read q, k or v as they lie: online: BT=128"
    ) in done.out
    plan = json.loads(attnc("plan", "flash", "--dim", "128", "--no-compiled", "--json").out)
    portable = json.loads(
        attnc(
            "plan", "flash", "--dim", "128", "--no-compiled", "--json", "--backend", "triton"
        ).out
    )  # fmt: skip
    assert plan["otherwise"]["backend"] == "triton"
    assert plan["otherwise"]["digest"] == portable["digest"] != plan["digest"]


def test_an_emitted_module_says_how_to_emit_it_again(attnc):
    done = attnc("emit", "flash", "--backend", "gluon")
    assert done.status == 0
    assert "--backend gluon" in done.out.split('"""')[1]
    assert "@gluon.jit" in done.out


def test_an_unknown_backend_is_a_slip_of_the_command_line(attnc):
    done = attnc("plan", "flash", "--backend", "glue")
    assert done.status == 64
    assert "unknown backend 'glue'" in done.err
    assert "the known ones are triton, gluon" in done.err


def test_what_gluon_cannot_take_is_said_by_every_command(attnc, tmp_path):
    for command in (
        ("plan", "lightning", "--backend", "gluon"),
        ("emit", "flash", "--backend", "gluon", "--dtype", "fp32"),
        ("build", "flash", "--backend", "gluon", "--target", "cuda:80", "-o", tmp_path / "p"),
    ):
        done = attnc(*command)
        assert done.status != 0
        assert "the gluon backend cannot take the forward of" in done.err


def test_a_wheel_of_gluon_kernels_is_refused(attnc, tmp_path):
    done = attnc(
        "build", "flash", "--backend", "gluon", "--target", "cuda:90", "--wheel", "mine",
        "-o", tmp_path,
    )  # fmt: skip
    assert done.status == 64
    assert "a wheel cannot launch gluon kernels" in done.err


def test_a_package_holds_what_pointers_launch_and_says_why(attnc, tmp_path):
    folder = tmp_path / "package"
    done = attnc("build", "flash", "--dim", "128", "--target", "cuda:90", "-o", folder)
    assert done.status == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (module,) = manifest["modules"]
    assert module["facts"]["backend"] == "triton"
    assert module["facts"]["backend_reason"].startswith("not gluon: what launches binaries")


def test_a_package_holds_a_gluon_binary(attnc, tmp_path):
    folder = tmp_path / "package"
    done = attnc("build", "flash", "--backend", "gluon", "--target", "cuda:90", "-o", folder)
    assert done.status == 0
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (module,) = manifest["modules"]
    (kernel,) = module["kernels"]
    assert (folder / kernel["file"]).stat().st_size > 1000
