"""A variant as a callable: plan, emit, load and launch, with the reference beside it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, overload

import torch

from attnc.codegen.algebra import analyse
from attnc.codegen.device import device_named
from attnc.codegen.plan import BACKENDS
from attnc.codegen.text.launch import used_tensors
from attnc.dsl.convolution import Convolution
from attnc.dsl.mask_data import CU_SEQLENS
from attnc.dsl.scales import over_scales
from attnc.dsl.sequences import over_sequences
from attnc.dsl.variant import Variant
from attnc.errors import AttncError
from attnc.ops.autograd import Attention, eager
from attnc.ops.built_plans import BuiltPlans
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.decode.decode_plans import DecodePlans
from attnc.ops.given_tensors import check_tensors
from attnc.ops.gradients import (
    apart,
    autocast,
    check_gradients,
    needs_gradient,
)
from attnc.ops.inputs import check_qkv, check_state, empty
from attnc.ops.launched import Launched
from attnc.ops.mask_numbers import check_numbers
from attnc.ops.near import far
from attnc.ops.operators import FORWARD, register
from attnc.ops.options import check_options, forms_with_kernels, one_length
from attnc.ops.reference.attend import reference
from attnc.ops.scaled import check_scaled, comes_scaled, output_name, output_names
from attnc.ops.seen_calls import SeenCalls, call_key
from attnc.ops.tuning.tuned import generation


class Op(Launched):
    """An attention op compiled from a variant.

    Shapes: q `[B, TQ, HQ, K]`, k `[B, TK, HKV, K]`, v `[B, TK, HKV, V]`, any strides.
    The output is [B, TQ, HQ, V].
    CPU tensors run the emitted kernel in Triton's interpreter, CUDA tensors run it compiled.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        device: str | None = None,
        backend: str | None = None,
        out: str = "",
        deterministic: bool = True,
    ) -> None:
        place = None if device is None else device_named(device)
        super().__init__(variant, place, backend, out, deterministic=deterministic)
        self.built_plans = BuiltPlans(self.request, self._device)
        self._decode_plans = DecodePlans(self.request, self._device)
        self._seen = SeenCalls()
        self._packed: Op | None = None
        # made here, since torch.compile traces no op that is made inside of a call
        self._scaled = {name: self._over_scales(name) for name in output_names(variant)}
        self._algebra = analyse(variant)
        order = "" if deterministic else "any_order"
        made_for = "-".join([self.planned_for, *filter(None, (backend, out, order))])
        self.key = register(f"{variant.name}-{variant.digest}-{made_for}", self)

    @property
    def planned_for(self) -> str:
        """The planner's device by name; empty where each call's own device is taken."""
        return "" if self._device is None else self._device.name

    def __repr__(self) -> str:
        return f"Op({self.variant.name!r}, {self._algebra.family})"

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        return_lse: bool = False,
        initial_state: torch.Tensor | None = None,
        return_state: bool = False,
        form: str | None = None,
        precision: str = "fp32",
        out_dtype: torch.dtype | None = None,
        **tensors: torch.Tensor | float,
    ) -> Any:
        """o, or (o, lse) with `return_lse`, or (o, state) with `return_state`.

        float8_e4m3fn tensors of a softmax variant come with q_scale [HQ], k_scale [HKV] and v_scale
        [HKV]; the output is bf16, or of `out_dtype`; see docs/fp8.md.

        With `cu_seqlens_q` and `cu_seqlens_k`, int32 [N + 1], tensors hold N sequences one after
        the other: q [1, tokens, HQ, K]. Positions, masks and tokens of inputs are each sequence's
        own; see docs/sequences.md.

        `form` picks one of the legal forms; `precision` is `fp32` or, for less accuracy
        and more speed on fp32 tensors, `tf32`.

        Raises:
            InputError: shapes, dtypes, devices or arguments that do not fit the declaration.
            PlanError: no tile fits, or the form is not legal.
        """
        scaled = out_dtype is not None or comes_scaled(q, self.variant)
        packed = tensors and not CU_SEQLENS.isdisjoint(tensors)
        if scaled or (packed and not self.variant.mask_form.packed):
            other = self.over_scales(q, out_dtype) if scaled else self.over_sequences()
            others: dict[str, Any] = {**tensors}
            return other(
                q, k, v, return_lse=return_lse, initial_state=initial_state,
                return_state=return_state, form=form, precision=precision, **others,
            )  # fmt: skip
        key: Hashable = None
        if initial_state is None and not return_state and not torch.compiler.is_dynamo_compiling():
            # whether queries and keys of packed sequences are known to be the same tokens
            one = tensors.get("cu_seqlens_q") is tensors.get("cu_seqlens_k")
            options = (return_lse, form, precision, one)
            answer = self._seen.answer(q, k, v, options, tensors, generation())
            if answer is not None:
                return answer[:2] if return_lse else answer[0]
            if not needs_gradient(q, k, v, *tensors.values()):
                key = call_key(q, k, v, options, tensors)
        q, k, v = autocast(q, k, v)
        sizes = check_qkv(q, k, v)
        given = check_tensors(self.variant, tensors, sizes, q)
        stateful = initial_state is not None or return_state
        check_options(
            self.variant.name, self._algebra, sizes, return_lse=return_lse, stateful=stateful,
            form=form, precision=precision, given=given,
        )  # fmt: skip
        folds = stateful or one_length(sizes, given)
        if self._algebra.family == "state" and form is None and not folds:
            form = "parallel"
        if 0 in (q.numel(), v.numel()):
            raise empty(q=q, v=v)
        state: torch.Tensor | None = None
        if stateful:
            starts = given.get("cu_seqlens_k")
            entries = sizes.batch if starts is None else starts.shape[0] - 1
            shape = self.state_shape(entries, sizes.hq, sizes.hkv, sizes.head_dim, sizes.value_dim)
            state = check_state(self.variant, initial_state, shape, q)
        values = list(given.values())
        if torch.compiler.is_compiling():
            q, k, v, state, *values = apart(q, k, v, state, *values)
        if self.variant.scaled:
            check_scaled(self.variant, q, k, v, given)
        if q.device.type == "cpu" and self.variant.mask_tensors and eager(q, *given.values()):
            check_numbers(self.variant, tensors)
        if needs_gradient(q, k, v, state, *values):
            check_gradients(self.variant, given)
            results = Attention.apply(  # type: ignore[no-untyped-call]
                self.key, form or "", precision, q, k, v, state, *values
            )
        elif not eager(q, k, v, state, *values):
            results = FORWARD(self.key, q, k, v, values, state, form or "", precision)
        else:
            results = self.forward(q, k, v, values, state, form, precision)
            # a tensor that was converted on the way would come unconverted next time
            same = all(given[name] is x for name, x in tensors.items())
            if key is not None and same and not any(map(far, (q, k, v))):
                built = self.built_plans.find(q, k, v, values, form, precision, stateful=False)
                built = built.taking_like(q, k, v)
                if built.run is not None:
                    self._seen.add(
                        key, built.run, used_tensors(built.plan), generation(), 1 + return_lse
                    )
        if return_lse:
            return results[0], results[1]
        return (results[0], results[-1]) if return_state else results[0]

    def reference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        return_lse: bool = False,
        initial_state: torch.Tensor | None = None,
        return_state: bool = False,
        **tensors: torch.Tensor | float,
    ) -> Any:
        """The same call by the formula, eager in fp64, row block by row block."""
        if comes_scaled(q, self.variant):
            given: dict[str, Any] = {**tensors, "initial_state": initial_state}
            return self.over_scales(q).reference(
                q, k, v, return_lse=return_lse, return_state=return_state, **given
            )
        if not CU_SEQLENS.isdisjoint(tensors) and not self.variant.mask_form.packed:
            packed = self.over_sequences()
            given = {**tensors, "initial_state": initial_state}
            return packed.reference(
                q, k, v, return_lse=return_lse, return_state=return_state, **given
            )
        sizes = check_qkv(q, k, v)
        return reference(
            self.variant,
            q,
            k,
            v,
            check_tensors(self.variant, tensors, sizes, q),
            return_lse=return_lse,
            initial_state=initial_state,
            return_state=return_state,
        )

    def over_sequences(self) -> Op:
        """The op of calls with `cu_seqlens_q` and `cu_seqlens_k`, made once.

        Raises:
            InputError: a variant whose meaning does not split into sequences.
        """
        if self._packed is None:
            variant = over_sequences(self.variant)
            self._packed = self._like(variant, self._out)
        return self._packed

    def _over_scales(self, out: str) -> Op:
        return self._like(over_scales(self.variant), out)

    def _like(self, variant: Variant, out: str) -> Op:
        """An op of another variant, asked for as this one was."""
        return Op(
            variant, device=self.planned_for or None, backend=self._backend, out=out,
            deterministic=self._deterministic,
        )  # fmt: skip

    def over_scales(self, q: torch.Tensor, out_dtype: torch.dtype | None = None) -> Op:
        """The op of calls with 8-bit tensors like q and their scales.

        Raises:
            InputError: a variant without such a kernel, or a type that none writes.
        """
        out = output_name(q, out_dtype)
        if out in self._scaled:
            return self._scaled[out]
        # one over scales itself, or one that cannot be: then this says why
        return self if out == self._out and self.variant.scaled else self._over_scales(out)

    def forms(self) -> tuple[str, ...]:
        """The legal forms that have kernels."""
        return forms_with_kernels(self._algebra)


@overload
def compile(  # type: ignore[overload-overlap]
    variant: Convolution,
    *,
    device: str | None = None,
    backend: str | None = None,
    deterministic: bool = True,
) -> ConvolutionOp: ...


@overload
def compile(
    variant: Variant,
    *,
    device: str | None = None,
    backend: str | None = None,
    deterministic: bool = True,
) -> Op: ...


def compile(
    variant: Variant,
    *,
    device: str | None = None,
    backend: str | None = None,
    deterministic: bool = True,
) -> Op | ConvolutionOp:
    """Make an op of a variant; `device` names a planner's device, the tensors' own by default.

    `backend` asks for `triton` or `gluon` kernels, in the phases that the backend can take. With
    `deterministic` False a backward may sum dq in any order where tuning found that to be faster;
    under torch.use_deterministic_algorithms(True) it does not.
    """
    if not isinstance(variant, Variant):
        raise AttncError(
            f"compile takes a Variant, not a {type(variant).__name__}",
            hints=(
                "attnc.load(path) returns a dict of variants by name",
                "and attnc.shipped() one of those that ship",
            ),
        )
    if backend is not None and backend not in BACKENDS:
        known = " and ".join(BACKENDS)
        raise AttncError(f"unknown backend {backend!r}", notes=(f"there are {known}",))
    if not isinstance(deterministic, bool):
        raise AttncError(f"deterministic is {deterministic!r}, neither True nor False")
    kind = ConvolutionOp if isinstance(variant, Convolution) else Op
    return kind(variant, device=device, backend=backend, deterministic=deterministic)  # type: ignore[arg-type]
