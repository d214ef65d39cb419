"""The ops of a package of binaries: no compiler, no Triton and no attnc. Copied into wheels.

A package is a folder with a manifest, launchers and binaries; nothing of it is used before its
digest is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnc.errors import InputError
from attnc.ops.autograd import Attention, eager
from attnc.ops.given_tensors import check_tensors
from attnc.ops.gradients import (
    apart,
    autocast,
    check_gradients,
    gradient_arguments,
    gradient_results,
    needs_gradient,
)
from attnc.ops.inputs import DTYPE_NAMES, check_qkv, check_state
from attnc.ops.near import far, near
from attnc.ops.operators import FORWARD, register
from attnc.ops.package_folder import Package, capability_of, runs_on, shown_module
from attnc.ops.seen_calls import SeenCalls, call_key, run_on


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A param or an input as the variant declares it."""

    name: str
    shape: tuple[str, ...]
    grad: bool
    kind: str


@dataclass(frozen=True, slots=True)
class DeclaredVariant:
    """What the checks of a call read of a variant."""

    name: str
    params: tuple[DeclaredTensor, ...]
    inputs: tuple[DeclaredTensor, ...]
    mask_tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module that fits a call, and its launcher."""

    facts: Mapping[str, Any]
    run: Callable[..., Any]


class PackagedOp:
    """An attention op of a package, for the dims, dtypes and devices it was built for.

    Shapes: q `[B, TQ, HQ, K]`, k `[B, TK, HKV, K]`, v `[B, TK, HKV, V]`, any strides; the output
    is [B, TQ, HQ, V].
    """

    def __init__(self, package: Package, name: str) -> None:
        self._package = package
        self._facts = package.manifest["variants"][name]
        tensors = [
            DeclaredTensor(t["name"], tuple(t["shape"]), t["grad"], t["kind"])
            for t in self._facts["tensors"]
        ]
        self.variant = DeclaredVariant(
            name,
            tuple(t for t in tensors if t.kind == "param"),
            tuple(t for t in tensors if t.kind == "input"),
            tuple(self._facts["mask_tensors"]),
        )
        self.softmax: bool = self._facts["family"] in {"softmax", "terms"}
        self.keeps_row_sums: bool = self._facts["normalize"] != "none"
        self.out_dtype: torch.dtype | None = None  # no module of a package takes 8-bit tensors
        self.tensor_names = tuple(tensor.name for tensor in tensors)
        self._modules = [m for m in package.manifest["modules"] if m["variant"] == name]
        self._loaded: dict[Hashable, LoadedModule] = {}
        self._seen = SeenCalls()
        self.key = register(f"{name}-{self._facts['digest']}", self)

    def __repr__(self) -> str:
        built = "; ".join(self._built())
        return (
            f"<{self.variant.name}: {self._facts['summary']}; built for {built}; "
            f"launched by {self._package.launches}>"
        )

    def _built(self) -> list[str]:
        return sorted({shown_module(module) for module in self._modules})

    def __call__(
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
        """o, or (o, lse) with `return_lse`, or (o, state) with `return_state`.

        Raises:
            InputError: inputs that do not fit, or what the package was not built for.
            CacheError: a file of the package was altered.
        """
        key: Hashable = None
        if initial_state is None and not return_state and not torch.compiler.is_dynamo_compiling():
            answer = self._seen.answer(q, k, v, return_lse, tensors)
            if answer is not None:
                return answer[:2] if return_lse else answer[0]
            if not needs_gradient(q, k, v, *tensors.values()):
                key = call_key(q, k, v, return_lse, tensors)
        q, k, v = autocast(q, k, v)
        sizes = check_qkv(q, k, v)
        # the binaries read fp32
        given = {
            name: x.float()
            for name, x in check_tensors(self.variant, tensors, sizes, q).items()  # type: ignore[arg-type]
        }
        if return_lse and not self.softmax:
            family = self._facts["family"]
            raise InputError(f"{self.variant.name!r} has no lse: it is of the {family} family")
        state: torch.Tensor | None = None
        if initial_state is not None or return_state:
            shape = self._state_shape(q, k, v)
            state = check_state(self.variant, initial_state, shape, q)  # type: ignore[arg-type]
        values = list(given.values())
        if torch.compiler.is_compiling():
            q, k, v, state, *values = apart(q, k, v, state, *values)
        if needs_gradient(q, k, v, state, *values):
            check_gradients(self.variant, given)  # type: ignore[arg-type]
            results = Attention.apply(self.key, "", "fp32", q, k, v, state, *values)  # type: ignore[no-untyped-call]
        elif not eager(q, k, v, state, *values):
            results = FORWARD(self.key, q, k, v, values, state, "", "fp32")
        else:
            results = self.forward(q, k, v, values, state)
            # a tensor that was converted on the way would come unconverted next time
            same = all(given[name] is x for name, x in tensors.items())
            if key is not None and same and not any(map(far, (q, k, v))):
                module = self._module(q, k, v, "forward", stateful=False)
                self._seen.add(key, module.run, module.facts["tensors"], wanted=1 + return_lse)
        if return_lse:
            return results[0], results[1]
        return (results[0], results[-1]) if return_state else results[0]

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        initial_state: torch.Tensor | None,
        form: str | None = None,
        precision: str = "fp32",
    ) -> list[torch.Tensor]:
        """What the kernels return of checked inputs: o, then row sums, then the final state."""
        module = self._module(q, k, v, "forward", stateful=initial_state is not None)
        named = dict(zip(self.tensor_names, tensors, strict=True))
        arguments = [*map(near, (q, k, v)), *(named[name] for name in module.facts["tensors"])]
        if initial_state is not None:
            arguments.append(initial_state)
        results = run_on(q.device, module.run, arguments)
        return list(results) if isinstance(results, tuple | list) else [results]

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        initial_state: torch.Tensor | None,
        kept: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        wanted: tuple[str, ...],
        form: str | None = None,
        precision: str = "fp32",
    ) -> list[torch.Tensor]:
        """Gradients of q, k, v, the declared tensors in `wanted`, and the initial state."""
        stateful = initial_state is not None
        module = self._module(q, k, v, "backward", stateful=stateful, wanted=wanted)
        named = dict(zip(self.tensor_names, tensors, strict=True))
        taken = [named[name] for name in module.facts["tensors"]]
        arguments = gradient_arguments(q, k, v, taken, kept, gradients, initial_state)
        results = list(run_on(q.device, module.run, arguments))
        return gradient_results(
            results, module.facts["wanted"], wanted, named, stateful=stateful
        )  # fmt: skip

    def _state_shape(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[int, int, int, int]:
        facts = self._module(q, k, v, "forward", stateful=True).facts
        heads = q.shape[2] if facts["state_heads"] == "query" else k.shape[2]
        return (q.shape[0], heads, facts["state_rows"], facts["state_columns"])

    def _module(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        phase: str,
        *,
        stateful: bool,
        wanted: tuple[str, ...] = (),
    ) -> LoadedModule:
        whole = q.shape[1] == k.shape[1]
        key = (q.device, q.dtype, q.shape[-1], v.shape[-1], whole, phase, stateful, wanted)
        found = self._loaded.get(key)
        if found is None:
            facts = self._pick(q, v, phase, whole=whole, stateful=stateful, wanted=wanted)
            found = LoadedModule(facts["facts"], self._package.launcher_on(facts, q.device))
            self._loaded[key] = found
        return found

    def _pick(
        self,
        q: torch.Tensor,
        v: torch.Tensor,
        phase: str,
        *,
        whole: bool,
        stateful: bool,
        wanted: tuple[str, ...],
    ) -> Mapping[str, Any]:
        """The module for a call, and of several the one that computes least beside."""
        capability = capability_of("q", q)
        asked = {
            "phase": phase, "dtype": DTYPE_NAMES[q.dtype], "qk": q.shape[-1], "v": v.shape[-1],
            "stateful": stateful,
        }  # fmt: skip
        fitting = [
            module
            for module in self._modules
            if all(module["facts"][name] == value for name, value in asked.items())
            and (whole or module["facts"]["form"] != "chunked")
            and set(wanted) <= {*module["facts"].get("gradients", ())}
        ]
        running = [module for module in fitting if runs_on(module["facts"]["target"], capability)]
        if running:
            return min(
                running,
                key=lambda m: (
                    -int(m["facts"]["target"].partition(":")[2]),
                    # tokens of one length have the chunked form, where there is one
                    m["facts"]["form"] != "chunked",
                    len(m["facts"].get("gradients", ())),
                ),
            )
        what = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not False)
        lengths = "" if whole else ", TQ other than TK"
        raise InputError(
            f"{self.variant.name!r} was not built for {what}{lengths} on "
            f"{torch.cuda.get_device_name(q.device)} (cuda:{capability[0]}{capability[1]})",
            notes=tuple(
                f"built: {text}" for text in sorted({shown_module(m) for m in self._modules})
            ),
            hints=("attnc build NAME --target cuda:.. --wheel makes another package",),
        )
