"""Decode of a convolution: a ring to begin with, prefills in pieces, and one token a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from attnc.codegen.convolution.step_planner import check_decodes
from attnc.codegen.plan import Workload
from attnc.dsl.convolution import Convolution
from attnc.errors import InputError
from attnc.ops.built import launch
from attnc.ops.convolution_inputs import check_filter, check_tokens
from attnc.ops.decode.beginning_sizes import check_counts, check_state_dtype, state_device
from attnc.ops.decode.decode_plans import DecodePlans
from attnc.ops.decode.filter_state import FilterState
from attnc.ops.gradients import needs_gradient
from attnc.ops.planned import Planned
from attnc.ops.tap_transforms import transformed


class FilterDecoding(Planned, ABC):
    """The part of a convolution that decodes; inference alone, the state is updated in place."""

    variant: Convolution
    _decode_plans: DecodePlans

    @property
    @abstractmethod
    def tensor_names(self) -> tuple[str, ...]:
        """Declared params and inputs, in declared order."""

    @abstractmethod
    def __call__(self, v: torch.Tensor, *others: torch.Tensor, **options: Any) -> torch.Tensor:
        """The op on whole sequences."""

    def init_state(
        self,
        batch: int,
        channels: int,
        taps: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
    ) -> FilterState:
        """The state before the first token of `batch` sequences; `dtype` is that of v.

        Raises:
            PlanError: the filter weighs tokens that come later.
            InputError: a size that is not positive, a dtype that no v has, or no such device.
        """
        check_decodes(self.variant)
        check_counts(batch=batch, channels=channels, taps=taps)
        check_state_dtype(dtype)
        low, high = self.variant.filter.offsets(taps)
        if high < low:
            raise InputError(f"the mask of {self.variant.name!r} leaves none of {taps} taps")
        place = state_device(device)
        ring = torch.zeros((batch, channels, high + 1), dtype=dtype, device=place)
        return FilterState(ring, torch.zeros(batch, dtype=torch.int32, device=place))

    def prefill(
        self, v: torch.Tensor, state: FilterState, **tensors: torch.Tensor | float
    ) -> tuple[torch.Tensor, FilterState]:
        """(o, state): rows of the tokens of v [B, T, C] after those that the state has seen.

        Declared tensors are those of the new tokens. All sequences are of one length. What comes
        before is convolved again from the ring, so that pieces agree with one call.

        Raises:
            InputError: shapes or arguments that do not fit the declaration or the state.
        """
        given = self._checked(v, state, tensors)
        tokens = int(state.lengths.max())
        if tokens != int(state.lengths.min()):
            raise InputError("a prefill takes sequences of one length, and these have several")
        found = self.variant.filter
        u = v if found.pregate is None else (v.float() * given[found.pregate.name]).to(v.dtype)
        past = state.past(tokens).transpose(1, 2)
        held = past.shape[1]
        if held:
            for ref in (found.pregate, found.postgate):
                if ref is not None:
                    gate = given[ref.name]
                    given[ref.name] = torch.cat([torch.ones_like(past, dtype=gate.dtype), gate], 1)
        o = self(torch.cat([past, v], 1) if held else v, **given)
        state.take(u.transpose(1, 2), tokens)
        return o[:, held:], state

    def step(
        self, v: torch.Tensor, state: FilterState, **tensors: torch.Tensor | float
    ) -> tuple[torch.Tensor, FilterState]:
        """(o, state): the row of one token, v [B, 1, C]; the state is written in place.

        Declared tensors are those of the one token; taps are the whole filter's. It waits for
        nothing on the device, so that a CUDA graph may hold it.

        Raises:
            InputError: shapes or arguments that do not fit the declaration or the state.
        """
        given = self._checked(v, state, tensors)
        if v.shape[1] != 1:
            raise InputError(
                f"a step takes one token, not {v.shape[1]}", hints=("prefill takes several",)
            )
        weight = self.variant.filter.weight.name
        given[weight] = transformed(self.variant, given[weight], training=False)
        batch, _, channels = v.shape
        taps = given[weight].shape[1]
        work = Workload(batch, 1, 1, channels, channels, taps)
        built = self._decode_plans.find(v, v, list(given.values()), work, "fp32")
        named = [given[name] for name in self.tensor_names if name in self.variant.used]
        arguments = [v, *named, state.ring, state.lengths]
        (o,) = launch(built, v, arguments, written=(len(arguments) - 2,))
        state.lengths.add_(1)
        return o, state

    def _checked(
        self, v: torch.Tensor, state: object, tensors: Mapping[str, torch.Tensor | float]
    ) -> dict[str, torch.Tensor]:
        check_decodes(self.variant)
        check_tokens(self.variant, v)
        given = check_filter(self.variant, tensors, v)
        if needs_gradient(v, *given.values()):
            raise InputError(
                "decode has no backward: its state is updated in place",
                hints=("call it under torch.no_grad()",),
            )
        if not isinstance(state, FilterState):
            what = type(state).__name__
            raise InputError(
                f"the state of {self.variant.name!r} is a {what}, not a FilterState",
                hints=("init_state makes one",),
            )
        taps = given[self.variant.filter.weight.name].shape[1]
        expected = [v.shape[0], v.shape[2], self.variant.filter.offsets(taps)[1] + 1]
        ring = state.ring
        if list(ring.shape) != expected or ring.dtype != v.dtype or ring.device != v.device:
            raise InputError(
                f"the ring is {list(ring.shape)} {ring.dtype} on {ring.device}, this call asks for "
                f"{expected} {v.dtype} on {v.device}"
            )
        return given
