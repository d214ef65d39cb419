"""`verify` passes what is right, names what is wrong, and says which seed showed it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from attnc.dsl.variant import Variant
from attnc.errors import InputError, PlanError
from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped
from attnc.ops.verification import gradients as verify_gradients
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.verify import verify

SHAPES = [Shape(1, 70, 70, 2, 1, 32, 32), Shape(1, 9, 33, 2, 1, 32, 32, strided=True)]
NAMES = ["flash", "lightning", "linear"]


def sabotage(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], None]) -> None:
    """Let every op's output pass through `spoil`."""
    call = Op.__call__

    def spoiled(self: Op, *args: Any, **options: Any) -> Any:
        result = call(self, *args, **options)
        spoil(result[0] if isinstance(result, tuple) else result)
        return result

    monkeypatch.setattr(Op, "__call__", spoiled)


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_variant_passes_and_the_report_counts_every_form(name):
    steps = []
    variant = shipped()[name]
    report = verify(
        variant, shapes=SHAPES, dtypes=["fp32", "bf16"], progress=lambda *s: steps.append(s)
    )
    assert report.passed, str(report)
    assert {row.dtype for row in report.rows} == {"fp32", "bf16"}
    forms = {row.what for row in report.rows if row.what.endswith("form") and row.what[:2] != "d "}
    assert forms == {f"{form} form" for form in compile_op(variant).forms()}
    gradients = {row.what for row in report.rows if row.what.startswith("d q")}
    # the recurrent form takes the gradients of the chunked one
    assert {f"d q, {form}" for form in forms - {"recurrent form"}} <= gradients
    assert "d q, recurrent form" not in gradients
    assert steps[-1] == (4, 4, "done")


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_fail_every_row_that_holds_an_output(name, monkeypatch):
    sabotage(monkeypatch, lambda out: out.zero_())
    report = verify(shipped()[name], shapes=SHAPES[:1], dtypes=["fp32", "bf16"], gradients=False)
    assert not report.passed
    assert all(not row.passed for row in report.rows if row.what.endswith("form"))


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("flash", {"cache"}),
        ("flash_window", {"cache", "ring"}),
        ("lightning", {"state"}),
        ("window_taylor", {"cache", "ring and state"}),
        ("prefix_lm", set()),
    ],
)
def test_prefills_and_steps_are_held_too_from_each_kind_of_state(name, kinds, monkeypatch):
    variant, shape = shipped()[name], Shape(1, 110, 110, 2, 1, 16, 16)
    report = verify(variant, shapes=[shape], dtypes=["fp32"], gradients=False)
    assert report.passed, str(report)
    found = {row.what for row in report.rows if row.what.startswith("decode")}
    assert found == {f"decode, {kind}" for kind in kinds}
    step = Op.step

    def late(op, q, k, v, state, **options):
        return step(op, q, k, v.flip(-1), state, **options)

    monkeypatch.setattr(Op, "step", late)
    report = verify(variant, shapes=[shape], dtypes=["fp32"], gradients=False)
    failed = {row.what for row in report.failures}
    assert failed == {f"decode, {kind}" for kind in kinds}


def test_a_state_that_no_tile_holds_takes_no_steps_and_is_told():
    shape = Shape(1, 101, 101, 1, 1, 80, 80)
    report = verify(shipped()["based"], shapes=[shape], dtypes=["fp32"], gradients=False)
    assert report.passed, str(report)
    assert any(text.startswith(f"decode, fp32 {shape}: no tile") for text in report.skipped)


def test_one_nan_fails_and_is_named(monkeypatch):
    sabotage(monkeypatch, lambda out: out[0, 5, 1, 7].fill_(float("nan")))
    report = verify(shipped()["flash"], shapes=SHAPES[:1], dtypes=["fp32"], gradients=False)
    assert report.worst is not None
    assert report.worst.worst_index == (0, 5, 1, 7)
    assert "FAIL" in rendered(report)
    assert json.loads(report.to_json())["rows"][0]["error"] == "inf"


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("family", ["softmax", "state"])
@pytest.mark.parametrize("dropped", ["full", "causal & window(20)", "j <= i + 1"])
def test_a_kernel_of_another_mask_fails(family, dropped, dtype, monkeypatch):
    declared, compiled = (masked(family, mask) for mask in ("causal", dropped))
    monkeypatch.setattr(
        "attnc.ops.verification.verify.compile", lambda _, **asked: compile_op(compiled, **asked)
    )
    # the state belongs to the causal mask alone, so only the outputs are compared
    report = verify(declared, shapes=[Shape(1, 50, 51, 2, 1, 32, 32)], dtypes=[dtype])
    assert report.rows
    assert not report.passed


def masked(family: str, mask: str) -> Variant:
    if family == "softmax":
        return Variant("masked", feature_map="softmax", scale="rsqrt(d)", mask=mask)
    return Variant(
        "masked", feature_map="elu(x) + 1", scale=1.0, mask=mask, normalize="sum"
    )  # fmt: skip


def test_a_seed_draws_the_same_again_and_no_seed_draws_afresh():
    variant = shipped()["flash"]
    first, again, other = (
        verify(variant, shapes=SHAPES[:1], dtypes=["fp32"], seed=seed) for seed in (7, 7, None)
    )
    assert first == again
    assert other.seed != first.seed


@pytest.mark.parametrize("name", ["bfloat16", torch.bfloat16])
def test_a_dtype_that_nobody_knows_is_refused(name):
    for ask, known in (
        (lambda: verify(shipped()["flash"], dtypes=[name]), "fp16, bf16, fp32, e4m3"),
        (lambda: compile_op(shipped()["linear"]).plan(dtype=name), "bf16, fp16, fp32, fp64, e4m3"),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.render() == (
            f"error[A300]: unknown dtype {name!r}\n"
            f"  note: the known ones are {known}\n"
            "  hint: a dtype goes by its short name: torch.bfloat16 is 'bf16'"
        )


def rendered(report: object) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(report)
    return capture.get()


def test_a_backward_that_cannot_be_planned_is_a_failed_row_and_not_the_end(monkeypatch):
    def refuse(*_, **__):
        raise PlanError("no tile holds it")

    monkeypatch.setattr(verify_gradients, "op_gradients", refuse)
    report = verify(shipped()["flash"], shapes=[Shape(1, 20, 20, 1, 1, 16, 16)], dtypes=["fp32"])
    failed = [row for row in report.rows if not row.passed]
    assert [(row.what, row.reason) for row in failed] == [
        ("gradients, online form", "no tile holds it")
    ]
    assert len(report.rows) > 1 and not report.passed
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    assert "no tile holds it" in console.file.getvalue()
