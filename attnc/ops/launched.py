"""What the operators ask of an op: facts about it, and its kernels run on checked inputs."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch

from attnc.codegen.text.gradient_launch import gradient_parameters, gradient_tensors, wanted_names
from attnc.codegen.text.launch import used_tensors
from attnc.ops.built import launch
from attnc.ops.built_plans import BuiltPlans
from attnc.ops.decode.decoding import Decoding
from attnc.ops.descriptors import describable
from attnc.ops.gradients import gradient_arguments, gradient_results
from attnc.ops.near import near
from attnc.ops.scaled import output_dtype


class Launched(Decoding, ABC):
    """The part of an op that runs plans."""

    built_plans: BuiltPlans

    @property
    def softmax(self) -> bool:
        """Whether there is an lse: of the softmax family, and of sums of terms."""
        return self._algebra.has_lse

    @property
    def keeps_row_sums(self) -> bool:
        """Whether a forward returns lse or normaliser [B, HQ, TQ] after o."""
        return self._algebra.normalize != "none"

    @property
    def out_dtype(self) -> torch.dtype | None:
        """The type of the output where it is not that of q."""
        return output_dtype(self._out) if self.variant.scaled else None

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Declared params and inputs, in declared order."""
        return tuple(tensor.name for tensor in (*self.variant.params, *self.variant.inputs))

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        initial_state: torch.Tensor | None,
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """What the kernels return of checked inputs: o, then row sums, then the final state."""
        stateful = initial_state is not None
        built = self.built_plans.find(q, k, v, tensors, form, precision, stateful=stateful)
        named = dict(zip(self.tensor_names, tensors, strict=True))
        arguments = [*map(near, (q, k, v)), *(named[name] for name in used_tensors(built.plan))]
        if initial_state is not None:
            arguments.append(initial_state)
        return launch(built, q, arguments)

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
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """Gradients of q, k, v, the declared tensors in `wanted`, and the initial state.

        `kept` are o and the row sums of the forward, `gradients` those of o and of lse or the
        final state.
        """
        built = self.built_plans.find(
            q, k, v, tensors, form, precision, stateful=initial_state is not None, wanted=wanted
        )
        named = dict(zip(self.tensor_names, tensors, strict=True))
        taken = [named[name] for name in gradient_tensors(built.plan)]
        arguments = gradient_arguments(q, k, v, taken, kept, gradients, initial_state)
        if built.plan.backend == "gluon":
            place = gradient_parameters(built.plan).index("do")
            arguments[place] = describable(arguments[place])
        results = launch(built, q, arguments)
        stateful = initial_state is not None
        return gradient_results(results, wanted_names(built.plan), wanted, named, stateful=stateful)
