"""A variant as a callable: plan, emit, load and launch, with the reference beside it."""

from __future__ import annotations

from typing import Any

import torch

from attnc.codegen.algebra import FORMS, analyse
from attnc.codegen.device import DEVICES, Device, device_named
from attnc.codegen.explain import explain
from attnc.codegen.features import features_of
from attnc.codegen.launch import used_tensors
from attnc.codegen.plan import Plan, Request, Workload
from attnc.codegen.planner import plans
from attnc.codegen.render import render
from attnc.dsl.variant import Variant
from attnc.errors import AttncError, InputError, PlanError
from attnc.ops.built import Built, Key, first_launch, store_plan
from attnc.ops.inputs import DTYPE_NAMES, Sizes, check_qkv, check_state, check_tensors
from attnc.ops.placement import planner_device
from attnc.ops.reference import reference

# three tf32 products keep the accuracy of fp32: 1e-6 where one keeps 1e-3
_PRECISIONS = {"fp32": "tf32x3", "tf32": "tf32"}


class Op:
    """An attention op compiled from a variant.

    Shapes: q `[B, TQ, HQ, K]`, k `[B, TK, HKV, K]`, v `[B, TK, HKV, V]`, any strides.
    The output is [B, TQ, HQ, V].
    CPU tensors run the emitted kernel in Triton's interpreter, CUDA tensors run it compiled.
    """

    def __init__(self, variant: Variant, *, device: str | None = None) -> None:
        self.variant = variant
        self._device = None if device is None else device_named(device)
        self._built: dict[Key, Built] = {}
        self._algebra = analyse(variant)

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
        **tensors: torch.Tensor | float,
    ) -> Any:
        """o, or (o, lse) with `return_lse`, or (o, state) with `return_state`.

        `form` picks one of the legal forms; `precision` is `fp32` or, for less accuracy
        and more speed on fp32 tensors, `tf32`.

        Raises:
            InputError: shapes, dtypes, devices or arguments that do not fit the declaration.
            PlanError: no tile fits, or the form is not legal.
        """
        sizes = check_qkv(q, k, v)
        given = check_tensors(self.variant, tensors, sizes, q)
        _refuse_grad(self.variant, q, k, v, *given.values(), initial_state)
        stateful = initial_state is not None or return_state
        self._check_options(sizes, return_lse, stateful, form, precision)
        if self._algebra.family == "state" and form is None and sizes.tq != sizes.tk:
            form = "parallel"
        if 0 in (q.numel(), v.numel()):
            raise InputError(f"empty input: q is {list(q.shape)}, v is {list(v.shape)}")
        built = self._build(sizes, q, form, stateful, precision)
        arguments = [q, k, v, *(given[name] for name in used_tensors(built.plan))]
        if stateful:
            shape = self.state_shape(
                sizes.batch, sizes.hq, sizes.hkv, sizes.head_dim, sizes.value_dim
            )
            arguments.append(check_state(self.variant, initial_state, shape, q))
        result = self._launch(built, q, arguments)
        if self._algebra.family == "softmax":
            return result if return_lse else result[0]
        if stateful:
            return result if return_state else result[0]
        return result

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
        sizes = check_qkv(q, k, v)
        given = check_tensors(self.variant, tensors, sizes, q)
        return reference(
            self.variant,
            q,
            k,
            v,
            given,
            return_lse=return_lse,
            initial_state=initial_state,
            return_state=return_state,
        )

    def forms(self) -> tuple[str, ...]:
        """The legal forms that have kernels."""
        return tuple(
            verdict.form
            for verdict in self._algebra.forms
            if verdict.legal and verdict.form != "recurrent"
        )

    def state_shape(
        self, batch: int, hq: int, hkv: int, head_dim: int, value_dim: int
    ) -> tuple[int, int, int, int]:
        """[B, HS, F, V] of the state, V + 1 columns where a normaliser goes with it."""
        features = features_of(self._algebra, head_dim)
        heads = hq if self._algebra.decay_uses_head else hkv
        columns = value_dim + (1 if self._algebra.normalize == "sum" else 0)
        return (batch, heads, features.count, columns)

    def plan(
        self,
        *,
        dim: tuple[int, int] | None = None,
        dtype: str = "bf16",
        form: str | None = None,
        stateful: bool = False,
        workload: Workload | None = None,
    ) -> Plan:
        """The first-ranked plan at head dims (K, V), from the declaration where not given."""
        return plans(self._request(dim, dtype, form, stateful, workload=workload))[0]

    def explain(self, *, dim: tuple[int, int] | None = None, dtype: str = "bf16") -> str:
        """Every stage as text: the variant, its algebra, the graph and the plan."""
        return explain(self.plan(dim=dim, dtype=dtype))

    def source(
        self,
        *,
        dim: tuple[int, int] | None = None,
        dtype: str = "bf16",
        form: str | None = None,
        stateful: bool = False,
    ) -> str:
        """The emitted module's text."""
        return render(self.plan(dim=dim, dtype=dtype, form=form, stateful=stateful))

    def _request(
        self,
        dim: tuple[int, int] | None,
        dtype: str,
        form: str | None,
        stateful: bool,
        *,
        precision: str = "fp32",
        device: Device | None = None,
        workload: Workload | None = None,
    ) -> Request:
        declared = self.variant.dim
        fallback = (declared.qk, declared.v) if declared is not None else (64, 64)
        return Request(
            variant=self.variant,
            device=device or self._device or DEVICES["h100"],
            dims=dim or fallback,
            dtype=dtype,
            form=form,
            stateful=stateful,
            precision=_PRECISIONS[precision],
            workload=workload or Workload(),
        )

    def _check_options(
        self, sizes: Sizes, return_lse: bool, stateful: bool, form: str | None, precision: str
    ) -> None:
        name = self.variant.name
        softmax = self._algebra.family == "softmax"
        if precision not in _PRECISIONS:
            raise InputError(f"precision {precision!r} is neither 'fp32' nor 'tf32'")
        if return_lse and not softmax:
            raise InputError(
                f"{name!r} has no lse: it belongs to the {self._algebra.family} family",
                hints=("return_state=True gives what a later call continues from",),
            )
        if stateful and softmax:
            raise InputError(
                f"{name!r} has no state: it belongs to the softmax family",
                notes=(self._algebra.legal("chunked").reason,),
                hints=("return_lse=True gives what combines with another call's keys",),
            )
        if form is not None:
            self._check_form(form)
        if form in {"chunked", "recurrent"} and sizes.tq != sizes.tk:
            raise InputError(
                f"the {form} form needs TQ = TK, not {sizes.tq} and {sizes.tk}",
                hints=("the parallel form takes any lengths; it is chosen when form is left out",),
            )
        if not stateful:
            return
        verdict = self._algebra.legal("chunked")
        if not verdict.legal:
            raise InputError(f"{name!r} has no state", notes=(verdict.reason,))
        if form not in {None, "chunked"}:
            raise InputError(f"the {form} form keeps no state", hints=("leave form out",))
        if sizes.tq != sizes.tk:
            raise InputError(
                f"a state needs TQ = TK, not {sizes.tq} and {sizes.tk}",
                notes=("each token of k and v enters the state at its query's position",),
            )

    def _check_form(self, form: str) -> None:
        name = self.variant.name
        usable = ", ".join(self.forms())
        if form not in FORMS:
            raise InputError(
                f"{form!r} is no form", notes=(f"forms of {name!r} with kernels: {usable}",)
            )
        verdict = self._algebra.legal(form)
        if not verdict.legal:
            raise PlanError(
                f"{name!r} has no {form} form",
                notes=(verdict.reason,),
                hints=(f"its forms with kernels are: {usable}",),
            )
        if form not in self.forms():
            raise InputError(
                f"the {form} form of {name!r} has no kernel yet",
                hints=(f"its forms with kernels are: {usable}",),
            )

    def _build(
        self, sizes: Sizes, q: torch.Tensor, form: str | None, stateful: bool, precision: str
    ) -> Built:
        device = self._device or planner_device(q.device)
        dims = (sizes.head_dim, sizes.value_dim)
        key = Key(dims, DTYPE_NAMES[q.dtype], form, stateful, precision, device)
        built = self._built.get(key)
        if built is None:
            request = self._request(
                dims, key.dtype, form, stateful, precision=precision, device=device
            )
            ranked = plans(request)
            built = Built(ranked, 0, store_plan(ranked[0]))
            self._built[key] = built
        return built

    def _launch(self, built: Built, q: torch.Tensor, arguments: list[torch.Tensor]) -> Any:
        if q.device.type == "cpu":
            # a CUDA call needs no interpreter
            from attnc.autotune.interpreter import run_interpreted

            return run_interpreted(built.path, "forward", tuple(arguments), {})
        if built.module is not None:
            with torch.cuda.device(q.device):
                return built.module.forward(*arguments)
        return first_launch(built, q, arguments)


def _refuse_grad(variant: Variant, *tensors: torch.Tensor | None) -> None:
    if not torch.is_grad_enabled():
        return
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise InputError(
            f"{variant.name!r} was called on tensors that require grad; there is no backward yet",
            hints=("call it under torch.no_grad(), or on detached tensors",),
        )


def compile(variant: Variant, *, device: str | None = None) -> Op:
    """Make an op of a variant; `device` names a planner's device, the tensors' own by default."""
    if not isinstance(variant, Variant):
        raise AttncError(
            f"compile takes a Variant, not a {type(variant).__name__}",
            hints=("attnc.load(path) returns a dict of variants by name",),
        )
    return Op(variant, device=device)
