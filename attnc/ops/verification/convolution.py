"""Hold a convolution's kernels and gradients against its direct sum in fp64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, NoReturn

import torch
from torch import Tensor

from attnc.codegen.convolution.algebra import FFT, THREE_PASS
from attnc.dsl.butterfly import MOST_TOKENS, axis_of, factors_for
from attnc.dsl.convolution import Convolution
from attnc.errors import InputError, PlanError
from attnc.ops.convolution import ConvolutionOp
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.reference.convolution import convolution_gradients, convolve
from attnc.ops.verification.criterion import bound_of, check, check_agreement, check_gradient
from attnc.ops.verification.draw import Shape
from attnc.ops.verification.eager_error import Drawn, draws_of, telling
from attnc.ops.verification.report import Row

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# gates multiply, so that one element in hundreds has all of the error: several draws tell how much
_DRAWS = 8
_FEW_NUMBERS = 4096
# these round spectra too, and are held to what eager torch's transforms get
_BY_TRANSFORMS = {FFT, THREE_PASS}
# fp32 tables of more points fill SRAM
_LEARNED_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class FilterShape(Shape):
    """The sizes of one call of a convolution: B, T, C as batch, tq and hq, and the taps."""

    taps: int = 0
    factors: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, batch: int, tokens: int, channels: int, taps: int, *, strided: bool = False,
    ) -> FilterShape:  # fmt: skip
        """v [B, T, C] and taps [C, taps]; `strided` where the channels of a token are adjacent."""
        factors = factors_for(tokens) if tokens <= MOST_TOKENS else None
        return cls(
            batch, tokens, tokens, channels, channels, 1, 1, strided=strided, taps=taps,
            factors=factors,
        )  # fmt: skip

    def __str__(self) -> str:
        layout = " channels adjacent" if self.strided else ""
        return f"B={self.batch} T={self.tq} C={self.hq} taps={self.taps}{layout}"

    def axis(self, letter: str) -> int:
        """The length of one axis of a declared tensor."""
        found = {"b": self.batch, "t": self.tq, "c": self.hq, "T": self.taps}.get(letter)
        return axis_of(letter, *self.factors) if found is None and self.factors else found or 0


def filter_shapes(variant: Convolution, device: torch.device) -> tuple[FilterShape, ...]:
    """Ragged lengths, filters shorter and longer than the sequence, both layouts."""
    sizes = [(1, 200, 2, 200), (2, 1, 33, 5), (3, 63, 2, 7), (2, 130, 3, 201), (2, 100, 5, 64)]
    if device.type != "cpu":
        sizes = [
            (8, 1, 600, 3), (4, 63, 16, 63), (2, 1000, 24, 1000), (3, 1000, 16, 4),
            (2, 4096, 16, 4096), (1, 5000, 8, 3000), (1, 16384, 4, 16384), (2, 333, 16, 1001),
        ]  # fmt: skip
    if variant.filter.learned:
        sizes = [size for size in sizes if size[1] <= _LEARNED_TOKENS]
    if variant.filter.lowest is None:
        sizes = [(b, t, c, taps | 1) for b, t, c, taps in sizes]
    return tuple(
        FilterShape.of(*size, strided=number % 3 == 2) for number, size in enumerate(sizes)
    )


def draw_filter(
    variant: Convolution,
    shape: FilterShape,
    dtype: torch.dtype,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Random v and declared tensors; taps such that the result has v's size."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    def laid_out(x: Tensor) -> Tensor:
        x = x.to(device, dtype)
        return x if shape.strided else x.transpose(1, 2).contiguous().transpose(1, 2)

    v = laid_out(normal(shape.batch, shape.tq, shape.hq))
    tensors = {}
    for declared in (*variant.params, *variant.inputs):
        value = normal(*(shape.axis(letter) for letter in declared.shape))
        if declared.name == variant.filter.weight.name:
            value = value / sqrt(min(shape.taps, shape.tq))
        elif declared.shape[0] == "z":
            # as large as the DFT's, and far from it
            value = value / sqrt(2 * value.shape[1])
        tensors[declared.name] = laid_out(value) if value.dim() == 3 else value.to(device)
        if dtype == torch.float64:
            tensors[declared.name] = tensors[declared.name].double()
    return v, tensors


@dataclass(frozen=True, slots=True)
class FilterChecker:
    """Runs one shape in one dtype and yields what was found."""

    variant: Convolution
    op: ConvolutionOp
    device: torch.device
    generator: torch.Generator
    gradients: bool

    def packed(self) -> NoReturn:
        """The checker of packed calls, which there is none of.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.variant.name!r} takes no packed sequences")

    def scaled(self) -> NoReturn:
        """The checker of 8-bit tensors, which there is none of.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.variant.name!r} takes no 8-bit tensors")

    def rows(self, shape: Shape, name: str, skipped: list[str]) -> Iterator[Row]:
        """Every form, then forms against each other, then gradients of each."""
        assert isinstance(shape, FilterShape)
        dtype = _DTYPES[name]
        v, tensors = draw_filter(self.variant, shape, dtype, self.generator, self.device)
        ref = convolve(self.variant, v, tensors)
        given: dict[str, Any] = dict(tensors)
        found: dict[str, Tensor] = {}
        for form in self.op.forms():
            torch.full(v.shape, float("nan"), dtype=dtype, device=self.device)
            try:
                found[form] = self.op(v, form=form, **given)
            except PlanError as error:
                if form == self.op.forms()[0]:
                    raise
                skipped.append(f"{form} form, {name} {shape}: {error.message}")
                continue
            pt = self._eager(v, tensors, form)
            bound = self._bound(v, tensors, form)
            yield Row.of(f"{form} form", name, shape, check(found[form], ref, pt, bound=bound))
            first = next(iter(found))
            if form != first:
                verdict = check_agreement(found[form], found[first], ref, pt, bound=bound)
                yield Row.of(f"{form} against {first}", name, shape, verdict)
        if self.gradients:
            for way in (False, True):
                forms = tuple(form for form in found if (form in _BY_TRANSFORMS) is way)
                if forms:
                    yield from self._gradient_rows(v, tensors, shape, name, forms)

    def _eager(self, v: Tensor, tensors: dict[str, Tensor], form: str) -> Tensor:
        """What eager torch gets in the working dtype, the form's way."""
        return convolve(
            self.variant, v, tensors, dtype=torch.float32, rounding=v.dtype,
            by_fft=form in _BY_TRANSFORMS,
        )  # fmt: skip

    def _bound(self, v: Tensor, tensors: dict[str, Tensor], form: str) -> float:
        """The criterion's largest bound over other draws of a v that has few numbers."""
        if v.numel() >= _FEW_NUMBERS or v.dtype not in {torch.float16, torch.bfloat16}:
            return 0.0
        others = [self._incoming(v) for _ in range(_DRAWS - 1)]
        return max(
            bound_of(convolve(self.variant, x, tensors), self._eager(x, tensors, form), v.dtype)
            for x in others
        )

    def _gradient_rows(
        self, v: Tensor, tensors: dict[str, Tensor], shape: FilterShape, name: str,
        forms: tuple[str, ...],
    ) -> Iterator[Row]:  # fmt: skip
        dtype = _DTYPES[name]

        def draw() -> Drawn[Tensor]:
            incoming = self._incoming(v)
            return Drawn(incoming, *self._eager_error(v, tensors, incoming, forms[0]))

        def few(ref: Mapping[str, Tensor]) -> dict[str, int]:
            return {
                label: draws_of(x.numel(), _DRAWS)
                for label, x in ref.items()
                if x.dim() < 3 or x.numel() < _FEW_NUMBERS
            }

        found = telling(draw, few)
        for form in forms:
            gradients = op_gradients(self.op, v, tensors, found.incoming, form)
            for label, gradient in gradients.items():
                ref, eager = found.ref[label], found.eager[label]
                verdict = check_gradient(gradient, ref, eager, dtype, reduced=ref.dim() < 3)
                yield Row.of(f"d {label}, {form} form", name, shape, verdict)

    def _incoming(self, v: Tensor) -> Tensor:
        return torch.randn(v.shape, generator=self.generator).to(v.device, v.dtype)

    def _eager_error(
        self, v: Tensor, tensors: dict[str, Tensor], incoming: Tensor, form: str
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        ref = convolution_gradients(self.variant, v, tensors, incoming)
        rounded = convolution_gradients(
            self.variant,
            v,
            tensors,
            incoming,
            dtype=torch.float32,
            rounding=v.dtype,
            by_fft=form in _BY_TRANSFORMS,
        )
        return ref, {label: float((rounded[label] - ref[label]).abs().max()) for label in ref}


def op_gradients(
    op: ConvolutionOp, v: Tensor, tensors: dict[str, Tensor], incoming: Tensor, form: str | None
) -> dict[str, Tensor]:
    """The op's own gradients by name, v's first, through PyTorch's autograd."""
    declared = {d.name: d for d in (*op.variant.params, *op.variant.inputs)}
    given: dict[str, Any] = {
        label: x.detach().clone().requires_grad_(declared[label].grad)
        for label, x in tensors.items()
    }
    leaves = {"v": v.detach().clone().requires_grad_()}
    leaves |= {label: x for label, x in given.items() if x.requires_grad}
    with torch.enable_grad():
        out = op(leaves["v"], form=form, **given)
        found = torch.autograd.grad(out, list(leaves.values()), incoming)
    return dict(zip(leaves, found, strict=True))
