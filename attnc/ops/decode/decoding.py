"""Decode: prefill in pieces, and one token a step, the state in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from attnc.codegen.plan import Workload
from attnc.codegen.text.launch import used_tensors
from attnc.errors import InputError
from attnc.ops.built import launch
from attnc.ops.decode.beginning import Beginning, State
from attnc.ops.decode.kv_decode import (
    check_cache,
    prefill_cache,
    step_cache,
)
from attnc.ops.decode.matrix_state import MatrixState
from attnc.ops.decode.sum_decode import prefill_sum, step_sum
from attnc.ops.decode.sum_state import SumState
from attnc.ops.given_tensors import check_tensors
from attnc.ops.gradients import autocast, needs_gradient
from attnc.ops.inputs import Sizes, check_qkv
from attnc.ops.options import check_options
from attnc.ops.scaled import E4M3


class Decoding(Beginning, ABC):
    """The part of an op that decodes: `init_state`, `prefill` and `step`.

    Inference alone: no gradient passes a state that is updated in place.
    """

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Any:
        """The op on whole sequences."""

    def prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: State | None = None,
        *,
        return_lse: bool = False,
        form: str | None = None,
        precision: str = "fp32",
        **tensors: torch.Tensor | float,
    ) -> Any:
        """(o, state): rows of the tokens of q [B, T, HQ, K] after those that the state has seen.

        k [B, T, HKV, K] and v [B, T, HKV, V] enter the state, which is written in place; a state
        family call without one makes it. With `return_lse` (over a cache), (o, lse, state).
        Declared tensors are those of the new tokens; there, t and j count the whole capacity.

        Raises:
            InputError: shapes or arguments that do not fit the declaration or the state.
            PlanError: no tile fits, or the variant has no decode.
        """
        q, k, v = autocast(q, k, v)
        sizes = check_qkv(q, k, v)
        if sizes.tq != sizes.tk:
            raise InputError(
                f"a prefill takes as many queries as keys, not {sizes.tq} and {sizes.tk}"
            )
        self._check_inference(q, k, v, tensors)
        if state is None and not self._over_cache:
            state = self.init_state(
                sizes.batch, (sizes.hq, sizes.hkv), dim=(sizes.head_dim, sizes.value_dim),
                dtype=q.dtype, device=q.device,
            )  # fmt: skip
        options: dict[str, Any] = {"form": form, "precision": precision}
        if isinstance(state, SumState) and self._over_cache:
            if form is not None:
                raise InputError(
                    "a prefill beside a state has no form to choose",
                    notes=("its folded term goes by chunks, the others by pairs",),
                )
            o, lse = prefill_sum(self, q, k, v, state, tensors, sizes, precision)
            return (o, lse, state) if return_lse else (o, state)
        if self._over_cache:
            cache = check_cache(self, state, sizes, q)
            options["return_lse"] = return_lse
            result = prefill_cache(self, q, k, v, cache, tensors, options)
            return (*result, cache) if return_lse else (result, cache)
        matrix = self._check_matrix(state, sizes, q)
        o, packed = self(
            q, k, v, initial_state=matrix.packed(), return_state=True, return_lse=return_lse,
            **options, **tensors,
        )  # fmt: skip
        matrix.fill(packed)
        return o, matrix

    def step(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: State,
        *,
        return_lse: bool = False,
        precision: str = "fp32",
        **tensors: torch.Tensor | float,
    ) -> Any:
        """(o, state): the row of one token, q [B, 1, HQ, K], k [B, 1, HKV, K], v [B, 1, HKV, V].

        The state is written in place, without waiting for the device, so that a CUDA graph may hold
        the step; with `return_lse` (over a cache), (o, lse, state). Declared tensors are those of
        the one token; there, t and j count the whole capacity.

        Raises:
            InputError: shapes or arguments that do not fit the declaration or the state.
            PlanError: no tile holds the state.
        """
        q, k, v = autocast(q, k, v)
        sizes = check_qkv(q, k, v)
        if (sizes.tq, sizes.tk) != (1, 1):
            raise InputError(
                f"a step takes one token, not {sizes.tq} queries and {sizes.tk} keys",
                hints=("prefill takes several",),
            )
        self._check_inference(q, k, v, tensors)
        check_options(
            self.variant.name, self._algebra, sizes, return_lse=return_lse, stateful=False,
            form=None, precision=precision, given={},
        )  # fmt: skip
        if isinstance(state, SumState) and self._over_cache:
            o, lse = step_sum(self, q, k, v, state, tensors, sizes, precision)
            return (o, lse, state) if return_lse else (o, state)
        if self._over_cache:
            cache = check_cache(self, state, sizes, q)
            rows = step_cache(self, q, k, v, cache, tensors, sizes, precision)
            return (*rows, cache) if return_lse else (rows[0], cache)
        matrix = self._check_matrix(state, sizes, q)
        given = check_tensors(self.variant, tensors, sizes, q)
        workload = Workload(sizes.batch, 1, 1, sizes.hq, sizes.hkv)
        built = self._decode_plans.find(q, v, list(given.values()), workload, precision)
        named = [given[name] for name in used_tensors(built.plan)]
        arguments = [q, k, v, *named, *matrix.tensors]
        places = range(3 + len(named), len(arguments))
        (o,) = launch(built, q, arguments, written=places)
        return o, matrix

    def _check_inference(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Mapping[str, torch.Tensor | float],
    ) -> None:
        if q.dtype is E4M3:
            raise InputError(
                f"{self.variant.name!r} has no decode in e4m3",
                notes=("8-bit tensors have the forward alone",),
                hints=("convert q, k and v to bf16, and multiply them by their scales",),
            )
        if needs_gradient(q, k, v, *tensors.values()):
            raise InputError(
                "decode has no backward: its state is updated in place",
                hints=(
                    "call it under torch.no_grad()",
                    "a call with initial_state and return_state passes gradients through both",
                ),
            )

    def _check_matrix(self, state: object, sizes: Sizes, q: torch.Tensor) -> MatrixState:
        name = self.variant.name
        if not isinstance(state, MatrixState):
            raise InputError(
                f"the state of {name!r} is a {type(state).__name__}, not a MatrixState",
                hints=("init_state makes one",),
            )
        batch, heads, features, columns = self.state_shape(
            sizes.batch, sizes.hq, sizes.hkv, sizes.head_dim, sizes.value_dim
        )
        summed = self._algebra.state.normalize == "sum"
        expected = [batch, heads, features, columns - summed]
        if list(state.matrix.shape) != expected or (state.sums is not None) != summed:
            sums = "sums" if summed else "no sums"
            raise InputError(
                f"the state is {list(state.matrix.shape)}, "
                f"this call asks for {expected} and {sums}",
                notes=(f"the state of {name!r} is [B, HS, F, V]; see docs/state.md",),
            )
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        if state.matrix.dtype != wide or state.matrix.device != q.device:
            raise InputError(
                f"the state is {state.matrix.dtype} on {state.matrix.device}, "
                f"this call asks for {wide} on {q.device}"
            )
        return state
