"""Hold a variant's kernels against its fp64 reference, on random inputs, in every legal form."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnc.dsl.convolution import Convolution
from attnc.dsl.proof import is_causal
from attnc.dsl.variant import Variant
from attnc.errors import InputError, PlanError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.op import Op, compile
from attnc.ops.reference.attend import Attended, attend
from attnc.ops.scaled import E4M3
from attnc.ops.verification.backend import not_fused, why_not
from attnc.ops.verification.conditioning import allowance
from attnc.ops.verification.convolution import FilterChecker
from attnc.ops.verification.criterion import Verdict, check, check_agreement, check_lse
from attnc.ops.verification.decoding import decode_rows, decodes
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.gradients import gradient_rows
from attnc.ops.verification.report import Report, Row
from attnc.ops.verification.shapes import DTYPES, SCALED, calls_of, default_shapes, packed_shapes
from attnc.ops.verification.states import state_rows

Progress = Callable[[int, int, str], None]
_DRAWS = 3
_INTERPRETED_TOKENS = 128
_DECODED_TOKENS = range(100, 1001)


def verify(
    variant: Variant,
    *,
    device: str = "cpu",
    dtypes: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
    seed: int | None = None,
    gradients: bool = True,
    backend: str | None = None,
    deterministic: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Run every legal form of a variant on random inputs and compare with the reference.

    With `gradients`, the backward of every form too, against autograd through the reference. Of a
    variant that decodes, prefills and steps of the long shapes too.
    8-bit tensors, `e4m3`, are verified where `dtypes` name them, against what their scales make.
    `backend` is whose kernels run, `triton` or `gluon`; what it cannot take is told as skipped.
    With `deterministic` False gradients come of the fused way, and where there is none, as told.

    Each seed draws other inputs; the report names it, and `seed=` draws the same again.
    `progress` is called with (done, total, what comes next).

    Raises:
        PlanError: no kernel can be had for a call, or the backend takes none of them.
    """
    seed = secrets.randbits(32) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    op: Op | ConvolutionOp = compile(variant, backend=backend, deterministic=deterministic)
    if isinstance(op, Op):
        op.built_plans.first = None if deterministic else lambda plan: not plan.deterministic
    place = torch.device(device)
    checker = _checker(variant, op, place, generator, gradients)
    if backend == "gluon" and dtypes is None:
        dtypes = ("bf16", "fp16")  # it takes no others
    calls = calls_of(variant, place, dtypes, shapes)
    if shapes is None:
        with suppress(InputError):  # not all variants split into sequences
            checker.packed()
            calls += [(shape, calls[0][1]) for shape in packed_shapes(variant, place)]
    rows: list[Row] = []
    skipped: list[str] = []
    for done, (shape, name) in enumerate(calls):
        if progress is not None:
            progress(done, len(calls), f"{name} {shape}")
        chosen = checker.scaled() if name in SCALED else checker
        chosen = chosen.packed() if shape.sequences else chosen
        if isinstance(chosen, _Checker):
            # a step is triton's, whoever is asked for
            chosen = replace(chosen, steps=backend != "gluon")
            why = why_not(chosen.op, backend, shape, name, "forward")
            if why:
                skipped.append(f"{name} {shape}: not {backend}: {why}")
                continue
            why = why_not(chosen.op, backend, shape, name, "backward")
            if why and gradients:
                skipped.append(f"gradients, {name} {shape}: not {backend}: {why}")
                chosen = replace(chosen, gradients=False)
            if chosen.gradients and not deterministic:
                told = not_fused(chosen.op, shape, name)
                chosen = replace(chosen, any_order=not told)
                skipped += [f"gradients in any order, {name} {shape}: {told}"] if told else []
        with torch.no_grad():
            rows.extend(chosen.rows(shape, name, skipped))
    if skipped and not rows:
        raise PlanError(
            f"the {backend} backend takes no call of {variant.name!r}",
            notes=tuple(dict.fromkeys(text.partition(f"not {backend}: ")[2] for text in skipped)),
            hints=("leave the backend out: triton takes all that can be declared",),
        )
    if progress is not None:
        progress(len(calls), len(calls), "done")
    return Report(variant.name, _place(place), seed, tuple(rows), tuple(skipped))


def _checker(
    variant: Variant, op: Op | ConvolutionOp, device: torch.device, generator: torch.Generator,
    gradients: bool,
) -> _Checker | FilterChecker:  # fmt: skip
    """What holds an op against what was declared: not against what it says it computes."""
    if isinstance(op, ConvolutionOp):
        assert isinstance(variant, Convolution), "a filter comes of a convolution"
        return FilterChecker(variant, op, device, generator, gradients)
    return _Checker(variant, op, device, generator, gradients)


def _place(device: torch.device) -> str:
    """Where the kernels run."""
    if device.type == "cpu":
        return "cpu, interpreted"
    return torch.cuda.get_device_name(device)


@dataclass(frozen=True, slots=True)
class _Checker:
    """Runs one shape in one dtype and yields what was found; with `steps`, of decode too."""

    variant: Variant
    op: Op
    device: torch.device
    generator: torch.Generator
    gradients: bool
    any_order: bool = False
    steps: bool = True

    def packed(self) -> _Checker:
        """The checker of packed calls.

        Raises:
            InputError: a variant that does not split into sequences.
        """
        op = self.op.over_sequences()
        return replace(self, variant=op.variant, op=op)

    def scaled(self) -> _Checker:
        """The checker of calls with 8-bit tensors and their scales, which have no gradients.

        Raises:
            InputError: a variant that takes none.
        """
        like = torch.empty(0, dtype=E4M3)
        op = self.op.over_scales(like)
        return replace(self, variant=op.variant, op=op, gradients=False)

    def rows(self, shape: Shape, name: str, skipped: list[str]) -> Iterator[Row]:
        """Every form, then forms against each other, then the state."""
        dtype = {**DTYPES, **SCALED}[name]
        softmax = self.variant.has_lse
        inputs, ref, pt = self._telling_draw(shape, dtype)
        allowed = allowance(self.variant, *inputs.qkv, inputs.tensors)
        found: dict[str, Tensor] = {}
        for form in self._forms(shape):
            self._poison(ref.out, self.op.out_dtype or dtype)
            try:
                out = self._call(inputs, form=form, return_lse=softmax)
            except PlanError as error:
                if form == self.op.forms()[0]:
                    raise
                skipped.append(f"{form} form, {name} {shape}: {error.message}")
                continue
            found[form] = out[0] if softmax else out
            by_state = form in {"chunked", "recurrent"}
            verdict = check(found[form], ref.out, pt.out, allowed=allowed if by_state else None)
            yield Row.of(f"{form} form", name, shape, verdict)
            if softmax and ref.lse is not None:
                # features of a state are rounded as scores are nowhere
                rounded = pt.lse if by_state or self._rounds_scores(shape, name) else None
                yield Row.of("lse", name, shape, check_lse(out[1], ref.lse, rounded))
        for other in [form for form in found if form != next(iter(found))]:
            first = next(iter(found))
            verdict = check_agreement(found[other], found[first], ref.out, pt.out, allowed)
            yield Row.of(f"{other} against {first}", name, shape, verdict)
        if self.gradients:
            # the recurrent form's backward is the chunked one's
            forms = tuple(form for form in found if form != "recurrent")
            yield from gradient_rows(
                self.op, inputs, shape, name, dtype, forms, self.generator,
                any_order=self.any_order,
            )  # fmt: skip
        if self._decodes(shape):
            rounded = pt.lse if self._rounds_scores(shape, name) else None
            try:
                yield from decode_rows(
                    self.op, inputs, shape, name, (ref, pt), allowed=allowed, rounded=rounded
                )
            except PlanError as error:
                skipped.append(f"decode, {name} {shape}: {error.message}")
        for form in ("chunked", "recurrent"):
            keeps_state = not softmax and is_causal(self.variant.mask_form)
            if form in found and shape.tq > 1 and keeps_state:
                yield from state_rows(
                    self.op, self.variant, inputs, shape, name, form, self.generator,
                    gradients=self.gradients,
                )  # fmt: skip

    def _telling_draw(self, shape: Shape, dtype: torch.dtype) -> tuple[Inputs, Attended, Attended]:
        """Inputs on which zeros would fail, with the reference and pt; the last draw otherwise.

        Where a single weight underflows in `dtype`, eager torch errs by a whole output, and a bound
        that wide would show nothing.
        """
        for _ in range(_DRAWS):
            inputs = draw_inputs(self.variant, shape, dtype, self.generator, self.device)
            ref = self._attend(inputs, lse=self.variant.has_lse)
            rounding = self.op.out_dtype or dtype
            pt = self._attend(inputs, rounding=rounding, lse=self.variant.has_lse)
            if check(pt.out, ref.out, pt.out).zeros_fail:
                break
        return inputs, ref, pt

    def _call(self, inputs: Inputs, **options: Any) -> Any:
        given: dict[str, Any] = {**options, **inputs.tensors}
        return self.op(inputs.q, inputs.k, inputs.v, **given)

    def _rounds_scores(self, shape: Shape, name: str) -> bool:
        """Whether scores are as exact as `name`: by the hardware's tanh, or rounded features.

        The tensor cores sum products of 8-bit numbers in fewer bits than fp32 has.
        """
        if name in SCALED:
            return True
        mapped = any(term.feature_map.phi is not None for term in self.variant.terms)
        return mapped or "fast_tanh" in self.op.plan(dim=(shape.qk, shape.v), dtype=name).helpers

    def _decodes(self, shape: Shape) -> bool:
        """Whether steps are taken too; no 8-bit tensors have any.

        Each kind of step is a kernel more, to compile or to interpret: short sequences show little
        in it, and very long ones no more than those of a thousand tokens.
        """
        asked = self.steps and not self.variant.scaled
        return asked and decodes(shape) and shape.tq in _DECODED_TOKENS

    def _forms(self, shape: Shape) -> tuple[str, ...]:
        """The forms that this shape allows: only the parallel one knows TQ other than TK.

        Interpreted token by token, a long sequence would take minutes.
        """
        left_out = set() if shape.tq == shape.tk else {"chunked", "recurrent"}
        if self.device.type == "cpu" and shape.tq > _INTERPRETED_TOKENS:
            left_out.add("recurrent")
        return tuple(form for form in self.op.forms() if form not in left_out)

    def _attend(
        self,
        inputs: Inputs,
        *,
        rounding: torch.dtype | None = None,
        lse: bool = False,
    ) -> Attended:
        return attend(
            self.variant,
            *inputs.qkv,
            inputs.tensors,
            dtype=torch.float64 if rounding is None else torch.float32,
            rounding=rounding,
            return_lse=lse,
        )

    def _poison(self, like: Tensor, dtype: torch.dtype) -> None:
        """Leave NaN in the memory that the allocator hands out next, probably for the output."""
        torch.full(like.shape, float("nan"), dtype=dtype, device=like.device)


__all__ = ["DTYPES", "Report", "Row", "Shape", "Verdict", "default_shapes", "verify"]
