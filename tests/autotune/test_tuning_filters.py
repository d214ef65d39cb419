"""Tuning of convolutions: forms are rivals, a transform's passes go together, calls find both."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch

from attnc.autotune.compiler import CompilePool
from attnc.autotune.tuning_store import Tuned, TuningStore
from attnc.codegen.plan import Workload
from attnc.codegen.planning.choice import Bucket, choice_of, chosen, kernel_key
from attnc.codegen.planning.planner import plans
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.convolution import convolution_gradients, convolve
from attnc.ops.shipped import convolutions
from attnc.ops.tuning import filter as tuning_filter
from attnc.ops.tuning import tuned as tuned_module
from attnc.ops.tuning.candidates import CandidateKernels, rounds, trial_of, ways
from attnc.ops.tuning.job import Job, ranked_plans, request_of
from attnc.ops.tuning.tune import tune
from attnc.ops.verification.convolution import FilterShape, draw_filter
from tests.ops.convolutions import CONVOLUTIONS

CPU = torch.device("cpu")


def ranked(name="hyena", shape=(2, 8192, 64, 8192), *, phase="forward", dtype="bf16"):
    op = compile_op({**convolutions(), **CONVOLUTIONS}[name])
    grads = tuple(t.name for t in (*op.variant.params, *op.variant.inputs) if t.grad)
    return ranked_plans(Job(op, FilterShape.of(*shape), dtype, phase, grads), CPU)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_every_form_is_a_rival_and_the_first_is_that_of_the_fastest_form(phase):
    found = ranked(phase=phase)
    assert found[0].form == "fft"
    assert list(dict.fromkeys(plan.form for plan in found)) == ["fft", "three_pass", "toeplitz"]
    op = compile_op(convolutions()["hyena"])
    for form in op.forms():
        request = op.request(None, "bf16", form, False, workload=found[0].workload)
        wanted = None if phase == "forward" else ("D", "w", "a", "g")
        alone = plans(replace(request, phase=phase, wanted=wanted))
        assert [p.passes for p in found if p.form == form] == [p.passes for p in alone]


def test_the_key_of_a_filter_says_its_lengths_and_no_form():
    found = ranked()
    keys = {kernel_key(plan) for plan in found}
    assert len(keys) == 1
    # up to the next powers of two, as calls are planned for
    assert kernel_key(ranked(shape=(7, 5000, 3, 6000))[0]) in keys
    others = [
        ranked(shape=(2, 4096, 64, 8192)), ranked(shape=(2, 8192, 64, 4)), ranked("long_conv"),
        ranked(phase="backward"), ranked(dtype="fp16"),
    ]  # fmt: skip
    assert len(keys | {kernel_key(other[0]) for other in others}) == 6
    # taps that the mask does not show change nothing
    short = [ranked("short_conv", (2, 512, 64, taps))[0] for taps in (4, 500)]
    assert kernel_key(short[0]) == kernel_key(short[1])
    sizes = [(32, 32), (64, 32)]
    op = compile_op(convolutions()["butterfly_conv"])
    work = [Workload(2, 512, 512, 64, 64, 512, factors) for factors in sizes]
    learned = [plans(op.request(None, "bf16", None, False, workload=w))[0] for w in work]
    assert kernel_key(learned[0]) != kernel_key(learned[1])


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_choice_of_any_form_finds_its_plan_again(phase):
    found = ranked(phase=phase)
    for plan in found:
        again = chosen(found, choice_of(plan))
        assert (again.form, again.passes) == (plan.form, plan.passes)


def test_passes_of_a_transform_are_measured_whole_and_those_of_blocks_one_by_one():
    by_form = {way[0].form: way for way in ways(ranked(phase="backward"), exhaustive=False)}
    assert set(by_form) == {"fft", "three_pass", "toeplitz"}
    for form in ("fft", "three_pass"):
        (group,) = rounds(by_form[form], exhaustive=False)
        assert list(group) == [(None, plan) for plan in by_form[form]]
        for _, plan in group:
            factors = {(s.tile["N1"], s.tile["N2"]) for s in plan.passes if "N1" in s.tile}
            assert len(factors) == 1
    places = [group[0][0] for group in rounds(by_form["toeplitz"], exhaustive=False)]
    assert len(places) > 1 and None not in places


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("taps", [1, 9, 131])
def test_sums_by_fft_are_the_direct_sums(name, taps):
    variant = CONVOLUTIONS[name]
    if variant.filter.lowest == 2 and taps == 1:
        taps = 5
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape = FilterShape.of(2, 70, 3, taps)
    v, tensors = draw_filter(variant, shape, torch.float64, generator, CPU)
    direct = convolve(variant, v, tensors)
    assert direct.abs().max() > 0.01
    torch.testing.assert_close(convolve(variant, v, tensors, by_fft=True), direct,
                               rtol=1e-11, atol=1e-11)  # fmt: skip
    incoming = torch.randn_like(v)
    found = convolution_gradients(variant, v, tensors, incoming, by_fft=True)
    for label, gradient in convolution_gradients(variant, v, tensors, incoming).items():
        torch.testing.assert_close(found[label], gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "grid"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_eager_transforms_of_a_working_type_round_their_spectra_too(dtype, grid):
    variant = CONVOLUTIONS["both_sides"]
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    shape = FilterShape.of(4, 300, 5, 201)
    v, tensors = draw_filter(variant, shape, dtype, generator, torch.device("cpu"))
    ref = convolve(variant, v, tensors)
    options = {"dtype": torch.float32, "rounding": dtype}
    direct, transformed = (
        float((convolve(variant, v, tensors, by_fft=way, **options) - ref).norm() / ref.norm())
        for way in (False, True)
    )
    # taps and the output are rounded either way, three spectra the one way alone
    assert grid / 4 < direct < grid
    assert 1.2 * direct < transformed < 3 * direct


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_what_is_expected_does_not_depend_on_how_many_channels_are_evaluated_at_once(
    phase, monkeypatch
):
    op, plan = compile_op(CONVOLUTIONS["gated"]), ranked("gated", (2, 70, 5, 70), phase=phase)[0]

    def facts():
        generator = torch.Generator().manual_seed(3)
        shape = FilterShape.of(2, 70, 5, 70)
        return tuning_filter.filter_facts(op, plan, shape, torch.bfloat16, generator, CPU)

    whole = facts()
    monkeypatch.setattr(tuning_filter, "_AT_ONCE", 2 * 70 * 2)
    parts = facts()
    assert len(whole["expected"]) == (1 if phase == "forward" else 5)
    for one, other in zip(whole["expected"], parts["expected"], strict=True):
        assert one.shape == other.shape and one.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert whole["bounds"] == pytest.approx(parts["bounds"], rel=1e-3)


def test_a_call_runs_the_form_that_tuning_chose_unless_it_asks_for_another(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    tuned_module.forget()
    op = compile_op(convolutions()["short_conv"])
    found = ranked("short_conv", (2, 40, 3, 4), dtype="fp32")
    best = next(plan for plan in found if plan.form == "fft")
    assert found[0].form == "toeplitz"
    answer = Tuned(
        kernel=kernel_key(best), variant="short_conv", phase="forward", dtype="fp32", dims=(1, 1),
        bucket=Bucket(64, 8), choice=choice_of(best), ms=0.5, noise=0.01, measured=10,
        candidates=20, triton="3.6.0", attnc="0.1.0", when="2026-11-24T00:00:00+00:00",
    )  # fmt: skip
    TuningStore().record("cpu", [answer])
    v, w = torch.randn(2, 37, 3), torch.randn(3, 4) / 2
    for form, wanted in ((None, "fft"), ("toeplitz", "toeplitz")):
        torch.testing.assert_close(op(v, w=w, form=form).double(), op.reference(v, w=w),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
        (built,) = [b for key, b in op._built.items() if key[3] == form]
        assert built.plan.form == wanted
    assert choice_of(built.plan) == choice_of(found[0])
    # another number of taps is another kernel
    op(v, w=torch.randn(3, 1))
    assert {b.plan.form for b in op._built.values()} == {"fft", "toeplitz"}
    assert list(op._built.values())[-1].plan.form == "toeplitz"
    tuned_module.forget()


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_tuning_a_learned_transform_checks_its_output_and_stores_what_won(
    phase, monkeypatch, tmp_path
):
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    tuned_module.forget()
    op = compile_op(convolutions()["butterfly_conv"])
    found = tune(op, [FilterShape.of(1, 40, 1, 40)], dtypes=["fp32"], phases=[phase],
                 device="cpu", budget_s=0.1)  # fmt: skip
    wanted = [(), ("D", "F1", "F2", "w")][: 1 if phase == "forward" else 2]
    assert [result.job.wanted for result in found] == wanted
    stored = TuningStore().read("cpu")
    for result in found:
        assert result.answer is not None, [trial.problem for trial in result.trials]
        assert stored[result.answer.key] == result.answer
        assert result.answer.bucket == Bucket(64, 1)
    tuned_module.forget()


@pytest.mark.parametrize(("tokens", "promised"), [(48, True), (50, False)])
def test_binaries_of_a_filter_are_promised_rows_of_sixteens_where_there_are_some(
    tokens, promised, tmp_path
):
    op = compile_op(convolutions()["short_conv"])
    job = Job(op, FilterShape.of(2, tokens, 3, 4), "bf16", "forward")
    plan = ranked_plans(job, CPU)[0]
    with CompilePool(1) as pool:
        kernels = CandidateKernels(pool, tmp_path, [(None, plan)], general=job.general)
    trial = trial_of(plan, None, request_of(job, plan), kernels)
    assert trial.problem == ""
    (entry,) = trial.kernels
    strides = {a["name"]: a for a in entry["arguments"] if a["name"].startswith("stride_v")}
    assert set(strides) == {"stride_v_b", "stride_v_c"}
    assert {a["divisible16"] for a in strides.values()} == {promised}
