"""A convolution as a callable: plan, emit, load and launch, with the reference beside it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from attnc.codegen.convolution.algebra import analyse_convolution
from attnc.codegen.device import Device, device_named
from attnc.codegen.plan import Request, Workload
from attnc.codegen.planning.choice import Bucket
from attnc.codegen.planning.planner import plans
from attnc.dsl.convolution import Convolution
from attnc.ops.built import Built, launch, store_plan
from attnc.ops.convolution_autograd import register
from attnc.ops.convolution_inputs import check_filter, check_tokens, factor_sizes
from attnc.ops.decode.decode_plans import DecodePlans
from attnc.ops.decode.filter_decode import FilterDecoding
from attnc.ops.dft_factors import dft_factors
from attnc.ops.filter_call import filter_inputs, run_filter
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.options import check_form_name, check_precision, forms_with_kernels
from attnc.ops.placement import planner_device
from attnc.ops.reference.convolution import convolve
from attnc.ops.tuning.tuned import generation, tuned_plan


class ConvolutionOp(FilterDecoding):
    """A convolution compiled from its declaration.

    Shapes: v `[B, T, C]`, taps `[C, taps]`, skip `[C]`, gates `[B, T, C]`, any strides; tensors
    whose tokens are adjacent (views of [B, C, T] memory) are read as they are, others are copied.
    The output is [B, T, C], its tokens adjacent in memory.
    """

    variant: Convolution

    def __init__(
        self,
        variant: Convolution,
        *,
        device: str | None = None,
        backend: str | None = None,
        deterministic: bool = True,
    ) -> None:
        place = None if device is None else device_named(device)
        super().__init__(variant, place, backend, deterministic=deterministic)
        self._algebra = analyse_convolution(variant)
        self._built: dict[Hashable, Built] = {}
        self._decode_plans = DecodePlans(self.request, self._device)
        made_for = f"{device or ''}-{backend or ''}"
        self.key = register(f"{variant.name}-{variant.digest}-{made_for}", self)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Declared params and inputs, in declared order."""
        return tuple(tensor.name for tensor in (*self.variant.params, *self.variant.inputs))

    def forms(self) -> tuple[str, ...]:
        """The legal forms that have kernels."""
        return forms_with_kernels(self._algebra)

    def __repr__(self) -> str:
        return f"ConvolutionOp({self.variant.name!r})"

    def __call__(
        self,
        v: torch.Tensor,
        *others: torch.Tensor,
        form: str | None = None,
        precision: str = "fp32",
        training: bool = False,
        **tensors: torch.Tensor | float,
    ) -> torch.Tensor:
        """o [B, T, C] of v [B, T, C] and the declared tensors by name.

        `form` picks one of the legal forms; `precision` is `fp32` or, for less accuracy and more
        speed on fp32 tensors, `tf32`; `training` drops taps where a dropout is declared.

        Raises:
            InputError: shapes, dtypes, devices or arguments that do not fit the declaration.
            PlanError: no tile fits, or the form is not legal.
        """
        check_precision(precision)
        check_form_name(form)
        v, given = filter_inputs(self.variant, v, others, tensors, training=training)
        return run_filter(self, v, list(given.values()), form, precision)

    def filtered(
        self, v: torch.Tensor, tensors: Sequence[torch.Tensor], form: str | None, precision: str
    ) -> torch.Tensor:
        """What the kernels return of checked inputs."""
        built = self._find(v, tensors, form, precision, None)
        return launch(built, v, [v, *self._used(tensors)])[0]

    def gradients(
        self,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        incoming: torch.Tensor,
        wanted: tuple[str, ...],
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """Gradients of v and of the declared tensors in `wanted`, in declared order."""
        built = self._find(v, tensors, form, precision, wanted)
        results = launch(built, v, [v, *self._used(tensors), incoming.to(v.dtype)])
        used = [name for name in self.tensor_names if name in wanted and name in self.variant.used]
        found = dict(zip(used, results[1:], strict=True))
        named = dict(zip(self.tensor_names, tensors, strict=True))
        return [
            results[0],
            *(found[n] if n in found else torch.zeros_like(named[n]) for n in wanted),
        ]

    def init_factors(
        self, tokens: int, *, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """The declared factors as those of a DFT that sequences of so many tokens fit, by name.

        Shapes: outer `[2, N1, N1 / 2]`, inner `[2, N2, N2]`, fp32, real parts first. With them the
        op is the convolution by its taps.

        Raises:
            InputError: no factors are declared, or `tokens` is no number of at least 1.
            PlanError: there are more tokens than any block has.
        """
        return dft_factors(self.variant, tokens, device)

    def reference(self, v: torch.Tensor, **tensors: torch.Tensor | float) -> torch.Tensor:
        """The same call by the formula, a direct sum in fp64."""
        check_tokens(self.variant, v)
        return convolve(self.variant, v, check_filter(self.variant, tensors, v))

    def request(
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
        """What a plan is asked for: a channel is a head of one number."""
        return super().request(
            (1, 1), dtype, form, stateful, precision=precision, device=device, workload=workload
        )

    def _used(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        used = self.variant.used
        return [x for name, x in zip(self.tensor_names, tensors, strict=True) if name in used]

    def _find(
        self,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        form: str | None,
        precision: str,
        wanted: tuple[str, ...] | None,
    ) -> Built:
        """The plan for a call: one a power of two of tokens, taps, and channels of the batch.

        What tuning chose comes first, whatever its form, unless `form` asks for another.
        """
        named = dict(zip(self.tensor_names, tensors, strict=True))
        batch, tokens, channels = v.shape
        taps = named[self.variant.filter.weight.name].shape[1]
        sizes = tuple(_above(size) for size in (batch, tokens, channels, taps))
        factors = factor_sizes(self.variant, named)
        types = tuple(tensor.dtype for tensor in tensors)
        key = (
            v.dtype, types, v.device, form, precision, wanted, sizes, factors, generation(),
        )  # fmt: skip
        found = self._built.get(key)
        if found is None:
            device = self._device or planner_device(v.device)
            work = filter_workload(batch, tokens, channels, taps, factors)
            request = self.request(
                None, DTYPE_NAMES[v.dtype], form, False, precision=precision, device=device,
                workload=work,
            )  # fmt: skip
            phase = "forward" if wanted is None else "backward"
            ranked = plans(replace(request, phase=phase, wanted=wanted))
            bucket = Bucket.of(work.batch, work.hq, work.tq, work.tk)
            tuned = tuned_plan(ranked, v.device, bucket)
            order = ranked if tuned is None else (tuned, *ranked)
            found = self._built[key] = Built(order, 0, store_plan(order[0]))
        return found


def filter_workload(
    batch: int, tokens: int, channels: int, taps: int, factors: tuple[int, int] | None
) -> Workload:
    """What calls of a size are planned for: all calls up to the next powers of two."""
    batch, tokens, channels, taps = map(_above, (batch, tokens, channels, taps))
    return Workload(batch, tokens, tokens, channels, channels, taps, factors)


def _above(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
